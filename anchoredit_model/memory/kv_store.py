"""A store of K/V under a byte budget.

One store serves a process. An entry can always be recomputed from its turn, so the store may evict: least recently
used first, those that the running turn sees never.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch

from .frame_kv import FrameKV


class KVStore:
    """Hold `FrameKV`s by content key, newest use last; `budget` in bytes (None: no limit)."""

    def __init__(self, budget: int | None = None):
        self.budget = budget
        self._entries: OrderedDict[str, FrameKV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def nbytes(self) -> int:
        """Count the bytes of all K/V held."""
        return sum(kv.nbytes for kv in self._entries.values())

    def get(self, key: str) -> FrameKV | None:
        """Return an entry, which counts as a use, or None if it was never stored or was evicted."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, kv: FrameKV, protect: Iterable[str] = ()) -> None:
        """Store an entry, then evict old ones until the budget is kept; never itself nor `protect`."""
        self._entries[key] = kv
        self._entries.move_to_end(key)
        self.shrink({key, *protect})

    def shrink(self, protect: Iterable[str] = ()) -> None:
        """Evict the least recently used entries outside `protect` until the budget is kept."""
        if self.budget is None:
            return
        kept, held = set(protect), self.nbytes
        for key in [key for key in self._entries if key not in kept]:
            if held <= self.budget:
                return
            held -= self._entries.pop(key).nbytes

    def nbytes_on(self, device: torch.device) -> int:
        """Count the bytes of the entries that lie on a device."""
        return sum(kv.nbytes for kv in self._entries.values() if kv.device == device)

    def offload(self, device: torch.device) -> None:
        """Move all entries that lie on a device to system RAM; none is evicted."""
        for key, kv in self._entries.items():
            if kv.device == device:
                self._entries[key] = kv.to("cpu")

    def retain(self, keys: Iterable[str]) -> None:
        """Evict everything but `keys`."""
        kept = set(keys)
        for key in [key for key in self._entries if key not in kept]:
            del self._entries[key]
