"""Images that somebody has made of what `python -m benchmark export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image

from ..run_folder import read_json
from ..suites.base import Suite
from ..suites.photo_sessions import image_named, turns_of
from .base import Editor

_SAME = 1.5 / 255  # a source may have been through another 8-bit file
_HINT = (
    "Give the options that they were made with (protocol, turns, sessions, seed, size, languages; photos, and --area, "
    "which is 0 for a published set)"
)


class FolderEditor(Editor):
    """Images that somebody has made of the sessions which `export` wrote."""

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
                f"'{self._folder / 'source.png'}' is of other sessions than those that are asked for", _HINT
            )
        check_asked(self._folder, self.suite.asked(session), _HINT)

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        return self._read(f"turn{self._turn}")

    def _read(self, name: str) -> Tensor:
        path = image_named(self._folder, name)
        if path is None:
            missing = self._folder / f"{name}.png"
            raise AnchorEditError(f"'{missing}' is missing", "Add it and ask again; finished sessions are kept")
        return load_image(path)


def check_asked(folder: Path, asked: Sequence[Any], remedy: str) -> None:
    """Raise AnchorEditError if a session's folder says that something else than this was asked."""
    path = folder / "instructions.json"
    if not path.is_file():  # a published set may list them elsewhere
        return
    written = [turn.instruction for turn in turns_of(read_json(path), path)]
    if written[: len(asked)] != [turn if isinstance(turn, str) else turn["instruction"] for turn in asked]:
        raise AnchorEditError(f"'{path}' is of other sessions than those that are asked for", remedy)
