"""Suite `studio`: held-out scenes whose every attribute is known, under the judge that reads them from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from studio.judge import Judge, Thresholds
from studio.render import render
from studio.sessions import held_out_generator

from ..editors.base import Editor
from .base import Record, Suite
from .protocols import ProtocolSessions, generate_sessions
from .session_runner import is_success, run_session, to_8_bit

_MIN_SIZE = 32  # pixels; smaller scenes show no face


class StudioSuite(Suite):
    """Hold the sessions of a protocol."""

    def __init__(self, protocol: str, turns: int, sessions: int, seed: int, size: int, languages: Sequence[str]):
        if size < _MIN_SIZE:
            raise AnchorEditError(f"--size must be {_MIN_SIZE} or more, got {size}", f"Use {_MIN_SIZE} or more")
        self.names = [f"{number:05d}" for number in range(sessions)]
        self.size = size
        self.judge = Judge(Thresholds())
        self._sessions = generate_sessions(protocol, sessions, turns, held_out_generator(seed), languages)
        self._options = {"protocol": protocol, "turns": turns, "sessions": sessions, "seed": seed}
        self._options |= {"languages": list(languages), "size": size}

    @property
    def settings(self) -> dict[str, Any]:
        return {"suite": "studio", **self._options, "thresholds": asdict(self.judge.limits)}

    @property
    def ground_truth(self) -> ProtocolSessions:
        return self._sessions

    def source(self, session: int) -> Tensor:
        return self._drawing(session, 0)

    def instructions(self, session: int) -> list[str]:
        return [row[session] for row in self._sessions.sessions.texts]

    def oracle_images(self, session: int) -> list[Tensor]:
        return [self._drawing(session, state) for state in range(len(self._sessions.sessions.scenes))]

    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        return run_session(editor, self.judge, self._sessions, session, self.oracle_images(session))

    def progress(self, record: Record) -> str:
        """Return a sign per turn: + success, . failure, - not applicable."""
        return "".join("-" if turn["not_applicable"] else "+" if is_success(turn) else "." for turn in record["turns"])

    def _drawing(self, session: int, state: int) -> Tensor:
        scenes = self._sessions.sessions.scenes[state]
        return to_8_bit(render(scenes[session : session + 1], self.size, self.size)[0])
