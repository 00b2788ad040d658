"""Being asked to end: by Ctrl-C, or by SIGTERM from whoever started the program."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """While this context lasts SIGINT and SIGTERM are only noted: `asked` says whether one came.

    A second one of its kind acts at once if the process is `alone`, but not while it is `saving`. Of several
    processes none is ended in the middle: torchrun sends Ctrl-C once more to those that have had it from the
    terminal, and ends those that take too long.
    """

    def __init__(self, alone: bool = True):
        self.alone = alone
        self.saving = False
        self._noted: set[int] = set()

    @property
    def asked(self) -> bool:
        return bool(self._noted)

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number in self._noted and self.alone and not self.saving:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self._noted.add(number)
