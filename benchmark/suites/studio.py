"""Suite `studio`: held-out scenes, drawn by what is known of them, under the judge that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from studio.judge import Judge, Thresholds
from studio.render import render
from studio.sessions import held_out_generator

from ..editors.base import Editor
from ..report.run_report import is_success, make_report, print_report
from ..report.sheet import draw_strip
from .base import Record, Suite
from .protocols import ProtocolSessions, draw_protocol_sessions
from .session_runner import as_saved, run_session, truths

_SMALLEST = 32  # pixels; less shows no face


class StudioSuite(Suite):
    """The sessions of a protocol."""

    def __init__(self, protocol: str, sessions: int, turns: int, seed: int, languages: Sequence[str], size: int):
        if size < _SMALLEST:
            raise AnchorEditError(f"scenes of {size} pixels show no face", f"Ask for --size {_SMALLEST} or more")
        self.names = [f"{number:05d}" for number in range(sessions)]
        self.size = size
        self.judge = Judge(Thresholds())
        self._trial = draw_protocol_sessions(protocol, sessions, turns, held_out_generator(seed), languages)
        self._asked = {"protocol": protocol, "turns": turns, "sessions": sessions, "seed": seed}
        self._asked |= {"languages": list(languages), "size": size}

    @property
    def settings(self) -> dict[str, Any]:
        return {"suite": "studio", **self._asked, "thresholds": asdict(self.judge.limits)}

    @property
    def drawn(self) -> ProtocolSessions:
        return self._trial

    def source(self, session: int) -> Tensor:
        return as_saved(render(self._trial.sessions.scenes[0][session : session + 1], self.size, self.size)[0])

    def asked(self, session: int) -> list[str]:
        return [row[session] for row in self._trial.sessions.texts]

    def run(self, editor: Editor, session: int) -> tuple[Record, list[Tensor]]:
        return run_session(editor, self.judge, self._trial, session, self.size)

    def signs(self, record: Record) -> str:
        """+ a success, . a failure, - nothing to do."""
        return "".join("-" if turn["moot"] else "+" if is_success(turn) else "." for turn in record["turns"])

    def report(self, settings: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        return make_report(settings, records)

    def print_report(self, report: dict[str, Any]) -> None:
        print_report(report)

    def strip(self, session: int, record: Record, images: list[Tensor]) -> Image.Image:
        return draw_strip(record, images, truths(self._trial, session, self.size))
