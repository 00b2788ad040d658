"""The folder of a run: its settings, and every session as soon as it is finished.

    DIR/settings.json
    DIR/sessions/NAME/source.png, turn1.png, turn2.png, ... and what `benchmark export` writes there
    DIR/sessions/NAME/session.json       written last: a session that has it is finished

Every file is written whole or not at all, so a killed run continues with its first unfinished session.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image, save_image

_RECORD = "session.json"


class RunFolder:
    """Open or create the folder of a run. Raises AnchorEditError if it holds a run with other settings."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = json.loads(json.dumps(settings))  # as they are read back: tuples become lists
        stored = path / "settings.json"
        if stored.exists():
            self._check(read_json(stored))
        else:
            write_json(self.settings, stored)

    @property
    def names(self) -> list[str]:
        """The names of all finished sessions, sorted."""
        return sorted(path.parent.name for path in (self.path / "sessions").glob(f"*/{_RECORD}"))

    def is_finished(self, session: str) -> bool:
        return (self._session(session) / _RECORD).exists()

    def make(self, session: str) -> Path:
        """Create a session's folder if it does not exist, and return it."""
        return make_folder(self._session(session))

    def save(self, session: str, record: dict[str, Any], images: Sequence[Tensor]) -> None:
        """Write a finished session: its images [3, H, W], the source first, then its record."""
        folder = self.make(session)
        for turn, image in enumerate(images):
            save_image(image, folder / _image_name(turn))
        write_json(record, folder / _RECORD)

    def record(self, session: str) -> dict[str, Any]:
        return read_json(self._session(session) / _RECORD)

    def images(self, session: str) -> list[Tensor]:
        """Load the images [3, H, W] of a finished session, the source first."""
        turns = len(self.record(session)["turns"])
        return [load_image(self._session(session) / _image_name(turn)) for turn in range(turns + 1)]

    def _session(self, name: str) -> Path:
        return self.path / "sessions" / name

    def _check(self, stored: Any) -> None:
        for name, old, new in _differences(stored, self.settings):
            raise AnchorEditError(
                f"'{self.path}' holds a run with {name} {json.dumps(old)}, this one has {json.dumps(new)}",
                "Choose another --out, or give the same options to continue that run",
            )


def make_folder(path: Path) -> Path:
    """Create a folder if it does not exist, and return it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnchorEditError(f"folder '{path}' cannot be created ({error.strerror})", "Choose another --out") from None
    return path


def write_json(data: Any, path: Path) -> None:
    with atomic_write(path, "report", make_folder=True) as unfinished:
        unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error})", "Delete it, and the run writes it again") from None


def _image_name(turn: int) -> str:
    return f"turn{turn}.png" if turn else "source.png"


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the names of the values that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new
