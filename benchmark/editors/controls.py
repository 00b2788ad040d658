"""Control editors that need no model: they show what the judge accepts and what it does not.

oracle     the drawing of what was asked, as nobody could do it better
no-op      the image before, whatever was asked
shuffled   the faultless drawing of what another session was asked
"""

from __future__ import annotations

import torch
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from studio.render import render

from ..suites.protocols import ProtocolSessions
from .base import Editor


class OracleEditor(Editor):
    """The drawings themselves."""

    def __init__(self, drawn: ProtocolSessions):
        self.drawn = drawn

    def start(self, image: Tensor, session: int) -> None:
        self._session, self._turn, self._size = session, 0, image.shape[-2:]

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        scenes = self.drawn.sessions.scenes[self._turn]
        return render(scenes[self._session : self._session + 1], *self._size)[0]


class NoOpEditor(Editor):
    """Does nothing, without fault."""

    def start(self, image: Tensor, session: int) -> None:
        self._image = image

    def edit(self, instruction: str) -> Tensor:
        return self._image


class ShuffledEditor(Editor):
    """Draws what the next session that was asked for something else is asked at the same turn."""

    def __init__(self, drawn: ProtocolSessions):
        self.drawn = drawn

    def start(self, image: Tensor, session: int) -> None:
        self._scene = self.drawn.sessions.scenes[0][session : session + 1]
        self._session, self._turn, self._size = session, 0, image.shape[-2:]

    def edit(self, instruction: str) -> Tensor:
        edits = self.drawn.sessions.edits[self._turn]
        facts = self._scene.attributes[0].tolist()
        wanted = edits[self._session].apply(facts)
        others = [edit.apply(facts) for edit in (*edits[self._session + 1 :], *edits[: self._session])]
        wrong = next((other for other in others if other != wanted), None)
        if wrong is None:
            raise AnchorEditError(
                f"editor 'shuffled' finds no other instruction at turn {self._turn + 1} of session {self._session}",
                "Ask for more --sessions, or for a --protocol that asks for something",
            )
        self._turn += 1
        self._scene = self._scene.with_attributes(torch.tensor([wrong]))
        return render(self._scene, *self._size)[0]
