"""Graceful interruption by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """Record SIGINT and SIGTERM within a context; `requested` says whether one came.

    A second signal of the same kind acts at once in a single process, unless it is `saving`. One of several processes
    is never stopped at once: torchrun repeats Ctrl-C to processes that the terminal has sent it to already, and ends
    those that take too long.
    """

    def __init__(self, single_process: bool = True):
        self.single_process = single_process
        self.saving = False
        self._received: set[int] = set()
        self._before: dict[int, Any] = {}  # signal -> handler

    @property
    def requested(self) -> bool:
        """Say whether an interruption was requested."""
        return bool(self._received)

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number in self._received and self.single_process and not self.saving:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self._received.add(number)
