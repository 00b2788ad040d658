"""Control editors, which need no model: they show what the judge accepts and what it rejects.

oracle     the correct drawing
no-op      the image before, whatever the instruction says
shuffled   the correct drawing of another session's instruction
"""

from __future__ import annotations

import torch
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from studio.render import render

from ..suites.protocols import ProtocolSessions
from .base import Editor


class OracleEditor(Editor):
    """Return the drawing of what the instruction asks for."""

    def __init__(self, ground_truth: ProtocolSessions):
        self.ground_truth = ground_truth

    def start(self, image: Tensor, session: int) -> None:
        self._session, self._turn, self._shape = session, 0, image.shape

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        scenes = self.ground_truth.sessions.scenes[self._turn]
        _, height, width = self._shape
        return render(scenes[self._session : self._session + 1], height, width)[0]


class NoOpEditor(Editor):
    """Return the source image at every turn."""

    def start(self, image: Tensor, session: int) -> None:
        self._image = image

    def edit(self, instruction: str) -> Tensor:
        return self._image


class ShuffledEditor(Editor):
    """Do the edit of the next session whose instruction at this turn has another result."""

    def __init__(self, ground_truth: ProtocolSessions):
        self.ground_truth = ground_truth

    def start(self, image: Tensor, session: int) -> None:
        self._scene = self.ground_truth.sessions.scenes[0][session : session + 1]
        self._session, self._turn, self._shape = session, 0, image.shape

    def edit(self, instruction: str) -> Tensor:
        edits = self.ground_truth.sessions.edits[self._turn]
        attributes = self._scene.attributes[0].tolist()
        wanted = edits[self._session].apply(attributes)
        others = [edit.apply(attributes) for edit in (*edits[self._session + 1 :], *edits[: self._session])]
        wrong = next((other for other in others if other != wanted), None)
        if wrong is None:
            raise AnchorEditError(
                f"editor 'shuffled' finds no other instruction at turn {self._turn + 1} of session {self._session}",
                "Use more --sessions, or a --protocol other than no-op",
            )
        self._turn += 1
        self._scene = self._scene.with_attributes(torch.tensor([wrong]))
        _, height, width = self._shape
        return render(self._scene, height, width)[0]
