"""Remembered keys and values under a byte budget.

One store serves a process. A block can always be made again from its turn, so the store is free to forget:
least recently used first, the blocks that the memory in use sees never.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch

from ..networks.transformer import FrameKV


class KVStore:
    """Blocks by content key, newest use last; `budget` in bytes (None: no limit)."""

    def __init__(self, budget: int | None = None):
        self.budget = budget
        self._blocks: OrderedDict[str, FrameKV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: str) -> bool:
        return key in self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        return sum(block.nbytes for block in self._blocks.values())

    def get(self, key: str) -> FrameKV | None:
        """The block, which counts as a use, or None if it was never written or is forgotten."""
        if key in self._blocks:
            self._blocks.move_to_end(key)
        return self._blocks.get(key)

    def put(self, key: str, block: FrameKV, protect: Iterable[str] = ()) -> None:
        """Remembers a block, then forgets old ones until the budget is kept; never itself nor `protect`."""
        self._blocks[key] = block
        self._blocks.move_to_end(key)
        self.shrink({key, *protect})

    def shrink(self, protect: Iterable[str] = ()) -> None:
        """Forgets the least recently used blocks outside `protect` until the budget is kept."""
        if self.budget is None:
            return
        kept, held = set(protect), self.nbytes
        for key in [key for key in self._blocks if key not in kept]:
            if held <= self.budget:
                return
            held -= self._blocks.pop(key).nbytes

    def nbytes_on(self, device: torch.device) -> int:
        """Bytes of those that lie on this device."""
        return sum(block.nbytes for block in self._blocks.values() if block.device == device)

    def leave(self, device: torch.device) -> None:
        """Moves all that lie on this device to main memory; nothing is forgotten."""
        for key, block in self._blocks.items():
            if block.device == device:
                self._blocks[key] = block.to("cpu")

    def retain(self, keys: Iterable[str]) -> None:
        """Forgets everything but `keys`."""
        kept = set(keys)
        for key in [key for key in self._blocks if key not in kept]:
            del self._blocks[key]
