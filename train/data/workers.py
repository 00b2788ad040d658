"""Read the sessions of many parts in one process or in workers: every part exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset
from webdataset.shardlists import split_by_worker

from .session import EditSession, Part, Problems, WorkSizes

_T = TypeVar("_T")


def split(parts: Sequence[_T], rank: int, world_size: int) -> Sequence[_T]:
    """Return the parts that process `rank` of `world_size` reads, none if there are fewer parts than processes."""
    return parts[rank::world_size]


def stream(parts: Sequence[Part], sizes: WorkSizes, workers: int = 0) -> Iterator[tuple[int, EditSession | Problems]]:
    """Yield (part number, session at its work size) for all parts, and after each part (part number, its problems).

    The sessions of a part come in order; parts that different workers read are interleaved.
    """
    yield from DataLoader(_Parts(list(parts), sizes), batch_size=None, num_workers=workers, collate_fn=_unchanged)


class _Parts(IterableDataset):
    def __init__(self, parts: list[Part], sizes: WorkSizes):
        self.parts, self.sizes = parts, sizes

    def __iter__(self) -> Iterator[tuple[int, EditSession | Problems]]:
        for number in split_by_worker(range(len(self.parts))):
            problems = Problems()
            for session in self.parts[number].sessions(problems):
                yield number, self.sizes.fit(session)
            yield number, problems


def _unchanged(item):
    return item
