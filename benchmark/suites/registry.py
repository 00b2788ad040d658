"""The suites by name, and their options on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from anchoredit_model.errors import AnchorEditError
from studio.instructions import LANGUAGES

from .base import Suite
from .photo_sessions import default_photos, find_photos
from .photos import PHOTO_PROTOCOLS, PhotoSuite
from .protocols import PROTOCOLS
from .similarity import SIMILARITIES, load_similarities
from .studio import StudioSuite


class SuiteEntry(NamedTuple):
    """How a suite is made, and the options it takes with their defaults."""

    make: Callable[..., Suite]
    defaults: Mapping[str, Any]


def _photos(
    photos: Path | None, protocol: str, turns: int | None, sessions: int | None, resolution: int, **weights: Path | None
) -> Suite:
    found = find_photos(photos) if photos else default_photos()
    if sessions is not None and not 1 <= sessions <= len(found):
        raise AnchorEditError(
            f"--sessions must be 1 to {len(found)}, got {sessions}", f"Use {len(found)} or fewer, or leave it out"
        )
    return PhotoSuite(found[:sessions], protocol, turns, resolution, load_similarities(weights))


SUITES: Mapping[str, SuiteEntry] = {
    "studio": SuiteEntry(
        StudioSuite,
        {"protocol": "chain", "turns": 12, "sessions": 60, "seed": 1, "size": 128, "languages": LANGUAGES},
    ),
    "photos": SuiteEntry(
        _photos,
        {
            "photos": None,
            "protocol": PHOTO_PROTOCOLS[0],
            "turns": None,
            "sessions": None,
            "resolution": 1024,
            **dict.fromkeys(SIMILARITIES),
        },
    ),
}


def make_suite(args: argparse.Namespace) -> Suite:
    """Return the suite that the options describe. Raises AnchorEditError for an option that it does not take."""
    make, defaults = SUITES[args.suite]
    for name in {name: None for entry in SUITES.values() for name in entry.defaults if name not in defaults}:
        if (value := getattr(args, name)) is not None:
            raise AnchorEditError(f"suite '{args.suite}' does not take --{name} {value}", "Leave it out")
    given = {name: getattr(args, name) for name in defaults}
    return make(**{name: default if given[name] is None else given[name] for name, default in defaults.items()})


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Add --suite and the options of all suites; `export` and `run` need the same ones."""
    studio, photos = SUITES["studio"].defaults, SUITES["photos"].defaults
    parser.add_argument("--suite", choices=tuple(SUITES), default="studio", help="(default: studio)")
    parser.add_argument(
        "--protocol",
        choices=tuple(dict.fromkeys((*PROTOCOLS, *PHOTO_PROTOCOLS))),
        help=f"(default: {studio['protocol']}; photos: {photos['protocol']})",
    )
    parser.add_argument("--turns", type=int, help=f"(default: {studio['turns']}; photos: all that are listed)")
    parser.add_argument("--sessions", type=int, help=f"(default: {studio['sessions']}; photos: all)")
    group = parser.add_argument_group("suite studio")
    group.add_argument("--seed", type=int, help="seed of the held-out scenes, which training never uses (default: 1)")
    group.add_argument("--size", type=int, help=f"side of a scene in pixels (default: {studio['size']})")
    group.add_argument("--languages", nargs="+", choices=LANGUAGES, metavar="en|zh", help="(default: both)")
    group = parser.add_argument_group("suite photos", "see benchmark/suites/photo_sessions.py")
    group.add_argument("--photos", type=Path, metavar="DIR", help="(default: six that come with scikit-image)")
    group.add_argument(
        "--resolution",
        type=int,
        help="side of a square in pixels, whose area no image exceeds; 0: as they are "
        f"(default: {photos['resolution']})",
    )
    for name in SIMILARITIES:
        group.add_argument(f"--{name}", type=Path, metavar="DIR", help="weights, see benchmark/suites/similarity.py")
