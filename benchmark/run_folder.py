"""The folder of a run: what it was asked for, and every session as soon as it is finished.

    DIR/settings.json
    DIR/sessions/NAME/source.png, turn1.png, turn2.png, ... and what `benchmark export` writes there
    DIR/sessions/NAME/session.json       written last: a session that has it is finished

Every file is written whole or not at all, so a run that is killed goes on with its first unfinished session.
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
    """Opens the folder of a run or makes it; one that holds a run with other settings is an error."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = json.loads(json.dumps(settings))  # as they will be read: tuples become lists
        stored = path / "settings.json"
        if stored.exists():
            self._check(read_json(stored))
        else:
            write_json(self.settings, stored)

    @property
    def names(self) -> list[str]:
        """Of all finished sessions, in their order by name."""
        return sorted(path.parent.name for path in (self.path / "sessions").glob(f"*/{_RECORD}"))

    def is_finished(self, session: str) -> bool:
        return (self._session(session) / _RECORD).exists()

    def make(self, session: str) -> Path:
        """Return a session's folder, made if it is not there."""
        folder = self._session(session)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnchorEditError(
                f"session folder '{folder}' cannot be made ({error.strerror})", "Choose another --out"
            ) from None
        return folder

    def save(self, session: str, record: dict[str, Any], images: Sequence[Tensor]) -> None:
        """Write a finished session: its images [3, H, W], the source first, then its record."""
        folder = self.make(session)
        for turn, image in enumerate(images):
            save_image(image, folder / _image_name(turn))
        write_json(record, folder / _RECORD)

    def record(self, session: str) -> dict[str, Any]:
        return read_json(self._session(session) / _RECORD)

    def images(self, session: str) -> list[Tensor]:
        """Images [3, H, W] of a finished session, the source first."""
        turns = len(self.record(session)["turns"])
        return [load_image(self._session(session) / _image_name(turn)) for turn in range(turns + 1)]

    def _session(self, name: str) -> Path:
        return self.path / "sessions" / name

    def _check(self, stored: Any) -> None:
        for name, was, now in _differences(stored, self.settings):
            raise AnchorEditError(
                f"'{self.path}' holds a run with {name} {json.dumps(was)}, this one has {json.dumps(now)}",
                "Choose another --out, or ask for the same to go on with it",
            )


def write_json(data: Any, path: Path) -> None:
    with atomic_write(path, "report", make_folder=True) as unfinished:
        unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _image_name(turn: int) -> str:
    return f"turn{turn}.png" if turn else "source.png"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error})", "Delete it, and the run makes it again") from None


def _differences(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of the values that differ, with both."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif was != now:
        yield name, was, now
