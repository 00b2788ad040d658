"""Which sessions a command is about: the options that say so, and the suite that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from anchoredit_model.errors import AnchorEditError
from studio.instructions import LANGUAGES

from .base import Suite
from .photo_sessions import default_photos, find_photos
from .photos import PHOTO_PROTOCOLS, PhotoSuite
from .protocols import PROTOCOLS
from .similarity import SIMILARITIES, load_similarities
from .studio import StudioSuite

SUITES = ("studio", "photos")
_STUDIO = {"protocol": "chain", "turns": 12, "sessions": 60, "seed": 1, "size": 128, "languages": LANGUAGES}
_PHOTOS = {"protocol": PHOTO_PROTOCOLS[0], "turns": None, "sessions": None, "area": 1024, "photos": None}
_OF_PHOTOS = ("area", "photos", *SIMILARITIES)
_OF_STUDIO = ("seed", "size", "languages")


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Which sessions: `make` and `run` have to be asked for the same."""
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument(
        "--protocol",
        choices=(*PROTOCOLS, *(name for name in PHOTO_PROTOCOLS if name not in PROTOCOLS)),
        help=f"(default: {_STUDIO['protocol']}; of photos {_PHOTOS['protocol']})",
    )
    parser.add_argument("--turns", type=int, help=f"(default: {_STUDIO['turns']}; of photos all that are listed)")
    parser.add_argument("--sessions", type=int, help=f"(default: {_STUDIO['sessions']}; of photos all)")
    studio = parser.add_argument_group("the studio")
    studio.add_argument("--seed", type=int, help="of the held-out scenes, which training never meets (default: 1)")
    studio.add_argument("--size", type=int, help=f"side of a scene in pixels (default: {_STUDIO['size']})")
    studio.add_argument("--languages", nargs="+", choices=LANGUAGES, metavar="en|zh")
    photos = parser.add_argument_group("photos", "see benchmark/suites/photo_sessions.py")
    photos.add_argument("--photos", type=Path, metavar="DIR", help="(default: a few that come with scikit-image)")
    photos.add_argument(
        "--area",
        type=int,
        help=f"side of the square whose area no image exceeds; 0: as they are (default: {_PHOTOS['area']})",
    )
    for name in SIMILARITIES:
        photos.add_argument(f"--{name}", type=Path, metavar="DIR", help="weights, see benchmark/suites/similarity.py")


def make_suite(args: argparse.Namespace) -> Suite:
    """Return the suite that these options mean; one that it has no use for is an error."""
    others = _OF_STUDIO if args.suite == "photos" else _OF_PHOTOS
    for name in others:
        if (value := getattr(args, name)) is not None:
            raise AnchorEditError(f"suite '{args.suite}' does not take --{name} {value}", "Leave it out")
    defaults = _PHOTOS if args.suite == "photos" else _STUDIO
    given = {name: getattr(args, name) for name in defaults}
    asked = {name: default if given[name] is None else given[name] for name, default in defaults.items()}
    if args.suite == "studio":
        return StudioSuite(**asked)
    sessions = find_photos(asked["photos"]) if asked["photos"] else default_photos()
    if asked["sessions"] is not None and not 1 <= asked["sessions"] <= len(sessions):
        raise AnchorEditError(
            f"--sessions must be 1 to {len(sessions)}, got {asked['sessions']}", f"Ask for {len(sessions)} or fewer"
        )
    similarities = load_similarities({name: getattr(args, name) for name in SIMILARITIES})
    return PhotoSuite(sessions[: asked["sessions"]], asked["protocol"], asked["turns"], asked["area"], similarities)
