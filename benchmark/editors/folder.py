"""The editor `folder`: images edited elsewhere, from sessions that `python -m benchmark export` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image

from ..run_folder import read_json
from ..suites.base import Suite
from ..suites.photo_sessions import find_image, parse_turns
from .base import Editor

_TOLERANCE = 1.5 / 255  # a source may have been saved in 8 bits once more
_REMEDY = (
    "Give the options of the export (protocol, turns, sessions, seed, size, languages; photos, and --resolution, "
    "which is 0 for a published set)"
)


class FolderEditor(Editor):
    """Return the images of a folder of sessions."""

    def __init__(self, images: Path, suite: Suite):
        self.images, self.suite = images, suite

    @property
    def settings(self) -> dict[str, Any]:
        return {"images": str(self.images.resolve())}

    def start(self, image: Tensor, session: int) -> None:
        self._folder, self._turn = self.images / self.suite.names[session], 0
        source = self._load("source")
        if source.shape != image.shape or (source - image).abs().max() > _TOLERANCE:
            raise AnchorEditError(f"'{self._folder / 'source.png'}' belongs to other sessions", _REMEDY)
        check_instructions(self._folder, self.suite.instructions(session), _REMEDY)

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        return self._load(f"turn{self._turn}")

    def _load(self, name: str) -> Tensor:
        path = find_image(self._folder, name)
        if path is None:
            missing = self._folder / f"{name}.png"
            raise AnchorEditError(f"'{missing}' is missing", "Add it and run again; finished sessions are kept")
        return load_image(path)


def check_instructions(folder: Path, expected: Sequence[Any], remedy: str) -> None:
    """Raise AnchorEditError if a session's folder lists other instructions than the expected ones."""
    path = folder / "instructions.json"
    if not path.is_file():  # a published set may list them elsewhere
        return
    listed = [turn.instruction for turn in parse_turns(read_json(path), path)]
    if listed[: len(expected)] != [turn if isinstance(turn, str) else turn["instruction"] for turn in expected]:
        raise AnchorEditError(f"'{path}' belongs to other sessions", remedy)
