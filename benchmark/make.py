"""Sessions written out, for editors that no adapter drives: a web page, a person, a program of its own.

    python -m benchmark make --protocol chain --turns 12 --sessions 60 --out sessions
    python -m benchmark run --protocol chain --turns 12 --sessions 60 --editor folder --images sessions --out mine
    python -m benchmark make --suite photos --photos DIR --out sessions

DIR/00017/source.png is a session's first image and DIR/00017/instructions.json lists what is asked, "" being nothing;
of photos the folder has the image's name, and turns of which more is known are objects (`benchmark/photos.py`).
Whoever edits puts DIR/00017/turn1.png, turn2.png ... beside them, each of the source's size, and the second command,
asked for the same sessions, judges them. This is the layout of LME-Bench, and of DIR/sessions of every run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image

from .editors import Editor
from .photos import image_named, turns_of
from .run_folder import read_json
from .suite import Suite
from .suites import add_suite_options, make_suite

_SAME = 1.5 / 255  # a source may have been through another 8-bit file
_HINT = (
    "give the options that they were made with (protocol, turns, sessions, seed, size, languages; photos, and --area, "
    "which is 0 for a published set)"
)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    suite = make_suite(args)
    for session, name in enumerate(suite.names):
        folder = args.out / name
        _check_asked(folder, suite.asked(session), "choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnchorEditError(f"'{folder}' cannot be made ({error.strerror})", "Choose another --out") from None
        suite.write(session, folder)
    print(f"{len(suite.names)} sessions of {suite.settings['turns']} turns in {args.out}")
    return 0


class FolderEditor(Editor):
    """Images that somebody has made of the sessions which `make` wrote."""

    def __init__(self, images: Path, suite: Suite):
        self.images, self.suite = images, suite

    @property
    def settings(self) -> dict[str, str]:
        return {"images": str(self.images.resolve())}

    def start(self, image: Tensor, session: int) -> None:
        self._folder, self._turn = self.images / self.suite.names[session], 0
        source = self._read("source")
        if source.shape != image.shape or (source - image).abs().max() > _SAME:
            raise AnchorEditError(
                f"'{self._folder / 'source.png'}' is of other sessions than those that are asked for", f"{_HINT}"
            )
        _check_asked(self._folder, self.suite.asked(session), _HINT)

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        return self._read(f"turn{self._turn}")

    def _read(self, name: str) -> Tensor:
        path = image_named(self._folder, name)
        if path is None:
            missing = self._folder / f"{name}.png"
            raise AnchorEditError(f"'{missing}' is missing", "Add it and ask again; finished sessions are kept")
        return load_image(path)


def _check_asked(folder: Path, asked: Sequence[Any], remedy: str) -> None:
    """Raises AnchorEditError if a session's folder says that something else than this was asked."""
    path = folder / "instructions.json"
    if not path.is_file():  # a published set may list them elsewhere
        return
    written = [turn.instruction for turn in turns_of(read_json(path), path)]
    if written[: len(asked)] != [turn if isinstance(turn, str) else turn["instruction"] for turn in asked]:
        raise AnchorEditError(f"'{path}' is of other sessions than those that are asked for", f"{remedy}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark make", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_suite_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the sessions")
    return parser
