"""The suite as an interface: sessions to put an editor through, and the record of what it made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.images import save_image

from ..editors.base import Editor
from ..run_folder import write_json
from .protocols import ProtocolSessions

Record = dict[str, Any]  # of a session, plain JSON; "turns" has one entry per turn with its "instruction"


class Suite(ABC):
    """Hold N sessions; `names` are also those of their folders.

    A new suite is a subclass, an entry in `SUITES` (registry.py) and one in `LAYOUTS` (report/layouts.py).
    """

    names: Sequence[str]

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Which sessions they are and how they are measured, as plain JSON values."""

    @property
    @abstractmethod
    def ground_truth(self) -> ProtocolSessions:
        """The scenes of all sessions, for the control editors. Raises AnchorEditError where there are none."""

    @abstractmethod
    def source(self, session: int) -> Tensor:
        """Return the source image [3, H, W] of a session, as an 8-bit file holds it."""

    @abstractmethod
    def instructions(self, session: int) -> list[Any]:
        """Return the turns as `instructions.json` lists them: texts, or objects that say more."""

    @abstractmethod
    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        """Edit a session; return its record and its images [3, H, W], the source first."""

    @abstractmethod
    def progress(self, record: Record) -> str:
        """Return a session in a few characters."""

    def oracle_images(self, session: int) -> list[Tensor] | None:
        """Return the correct images [3, H, W] of a session, the source first; None if they are not known."""
        return None

    def write(self, session: int, folder: Path) -> None:
        """Write source.png and instructions.json of a session, to be edited elsewhere."""
        save_image(self.source(session), folder / "source.png")
        write_json(self.instructions(session), folder / "instructions.json")
