"""What a suite is: sessions to put an editor through, and how to read what becomes of them.

studio_suite   drawn scenes of which every fact is known, under the exact judge
photo_suite    anybody's images, measured where they should be the same again
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from anchoredit_model.images import save_image

from ..editors.base import Editor
from ..run_folder import write_json
from .protocols import ProtocolSessions

Record = dict[str, Any]  # of a session, plain JSON; "turns" holds one entry per turn with its "instruction"


class Suite(ABC):
    """N sessions; `names` are also those of their folders."""

    names: Sequence[str]

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What says which sessions they are and how they are measured, as plain JSON values."""

    @property
    @abstractmethod
    def drawn(self) -> ProtocolSessions:
        """The truth of all sessions, for editors that draw it. Raises AnchorEditError where nobody knows it."""

    @abstractmethod
    def source(self, session: int) -> Tensor:
        """Return the image [3, H, W] that a session starts from, as an 8-bit file holds it."""

    @abstractmethod
    def asked(self, session: int) -> list[Any]:
        """Its turns as `instructions.json` lists them: texts, or objects that say more."""

    def write(self, session: int, folder: Path) -> None:
        """Its source.png and instructions.json, for somebody else to edit."""
        save_image(self.source(session), folder / "source.png")
        write_json(self.asked(session), folder / "instructions.json")

    @abstractmethod
    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        """One session through an editor: its record, and its images [3, H, W], the source first."""

    @abstractmethod
    def signs(self, record: Record) -> str:
        """Return a session in a few characters, for the progress of a run."""

    @abstractmethod
    def report(self, settings: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        """`report.json` of the finished sessions of a run."""

    @abstractmethod
    def print_report(self, report: dict[str, Any]) -> None:
        """Return the same as tables for people."""

    @abstractmethod
    def strip(self, session: int, record: Record, images: list[Tensor]) -> Image.Image:
        """Return a session as a contact sheet."""
