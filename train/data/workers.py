"""Sessions of many parts, read by one process or by worker processes: every part exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import webdataset
from torch.utils.data import DataLoader, IterableDataset

from .session import EditSession, Part, Problems, WorkSizes

_T = TypeVar("_T")


def split(parts: Sequence[_T], rank: int, world_size: int) -> Sequence[_T]:
    """Return the parts that process `rank` of `world_size` reads. Fewer parts than processes leave some without work."""
    return parts[rank::world_size]


def stream(parts: Sequence[Part], sizes: WorkSizes, workers: int = 0) -> Iterator[tuple[int, EditSession | Problems]]:
    """Return (number of a part, session at its work size) of all parts; each part ends with (its number, its problems).

    The sessions of a part come in order; those of parts that different workers read are interleaved.
    """
    yield from DataLoader(_Parts(list(parts), sizes), batch_size=None, num_workers=workers, collate_fn=_as_it_is)


class _Parts(IterableDataset):
    def __init__(self, parts: list[Part], sizes: WorkSizes):
        self.parts, self.sizes = parts, sizes

    def __iter__(self) -> Iterator[tuple[int, EditSession | Problems]]:
        for number in webdataset.split_by_worker(range(len(self.parts))):
            problems = Problems()
            for session in self.parts[number].sessions(problems):
                yield number, self.sizes.fit(session)
            yield number, problems


def _as_it_is(item):
    return item
