"""Endless batches of encoded sessions, each of one shape and layout; shuffled in each epoch, resumable at any batch.

    loader = Loader(data, batch_size=4, seed=1, rank=rank, world_size=world_size)
    for batch in loader: ...                 # a LoadedBatch

The order of an epoch depends on the seed, the number of the epoch and the global batch (`batch_size` x `world_size`),
not on how that is divided: process r takes the r-th slice of every global batch, so 1 process with 8 sessions and 2
with 4 see the same. Sessions that do not fill a global batch of their kind are left out of this epoch, a random choice
in each. Sessions in none of the chosen languages are always left out. Do not wrap it in a DataLoader: reading is
memory-mapped, and the position would run ahead.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping

from anchoredit_model.errors import AnchorEditError

from .dataset import EncodedSessions, LoadedBatch, Shape, kind_name


class Loader:
    """Iterate over batches; `epoch` and `position` say which global batch comes next."""

    def __init__(
        self,
        data: EncodedSessions,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        languages: Mapping[str, float] | None = None,
        text_rows: int | None = None,
    ):
        """Serve batches of one shape.

        batch_size: sessions per process. languages: how often each is chosen if a session has several (default: all
        equally often). text_rows: a fixed number of rows for texts, for compiled models.

        Raises AnchorEditError if no shape has enough sessions for a batch, or no session has one of the languages.
        """
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.languages, self.text_rows = languages, text_rows
        self.epoch, self.position = 0, 0
        self._choices = {number: shares for number in range(len(data)) if (shares := self._shares(number))}
        self._numbers: dict[tuple[Shape, bool], list[int]] = defaultdict(list)  # by shape and layout
        for number in self._choices:
            self._numbers[data.shapes[number], data.stars[number]].append(number)
        if not self._choices:
            raise AnchorEditError(
                f"languages must include one that the sessions have ({'/'.join(data.languages(0))}), got "
                f"{'/'.join(self._chosen)}",
                "Add one of its languages, or use other data",
            )
        if not len(self):
            largest = max(map(len, self._numbers.values()))
            raise AnchorEditError(
                f"a batch must have at most {largest} sessions, the most of one shape, got {self.global_batch}",
                "Give smaller batches or more data",
            )

    @property
    def global_batch(self) -> int:
        """Return the sessions per batch over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Return the batches per epoch."""
        return sum(len(numbers) // self.global_batch for numbers in self._numbers.values())

    def __iter__(self) -> Iterator[LoadedBatch]:
        while True:
            batches, chosen = self.order(self.epoch), self._languages_in(self.epoch)
            while self.position < len(batches):
                mine = batches[self.position][self.rank * self.batch_size :][: self.batch_size]
                self.position += 1  # before the yield: a state saved after the step is past this batch
                yield self.data.batch(mine, [chosen[number] for number in mine], self.text_rows)
            self.epoch, self.position = self.epoch + 1, 0

    def order(self, epoch: int) -> list[list[int]]:
        """Return the global batches of an epoch, each the numbers of sessions of one shape."""
        rng = random.Random(f"order {self.seed} {epoch}")
        batches = []
        for _, numbers in sorted(self._numbers.items()):
            shuffled = rng.sample(numbers, len(numbers))
            full = len(numbers) - len(numbers) % self.global_batch
            batches += [shuffled[start : start + self.global_batch] for start in range(0, full, self.global_batch)]
        return rng.sample(batches, len(batches))

    def describe(self) -> list[str]:
        """Describe the batches, and the sessions that are left out, in lines."""
        lines = [f"{len(self)} batches of {self.global_batch} sessions per epoch"]
        for kind, numbers in sorted(self._numbers.items()):
            over = len(numbers) % self.global_batch
            if over:
                often = "always" if over == len(numbers) else "each epoch"
                lines.append(f"left out {often}: {over} of {len(numbers)} x {kind_name(*kind)}")
        if unread := [number for number in range(len(self.data)) if number not in self._choices]:
            first = f"{self.data.key(unread[0])} in {'/'.join(self.data.languages(unread[0]))}"
            lines.append(
                f"left out always: {len(unread)} in none of the languages {'/'.join(self._chosen)}, first: {first}"
            )
        return lines

    @property
    def identity(self) -> dict[str, str | int]:
        """Return what determines the sessions at an `epoch` and `position`."""
        return {**self.data.identity, "seed": self.seed, "global batch": self.global_batch}

    @property
    def _chosen(self) -> list[str]:
        """Return the languages that have a share."""
        return [name for name, share in (self.languages or {}).items() if share > 0]

    def _shares(self, number: int) -> tuple[list[str], list[float]] | None:
        """Return a session's languages and how often each is chosen; None if it has none of the chosen ones."""
        usable = [name for name in self.data.languages(number) if self.languages is None or name in self._chosen]
        if not usable:
            return None
        return usable, [1.0 if self.languages is None else self.languages[name] for name in usable]

    def _languages_in(self, epoch: int) -> dict[int, str]:
        """Return the language of every session in an epoch."""
        rng = random.Random(f"language {self.seed} {epoch}")
        return {number: rng.choices(names, shares)[0] for number, (names, shares) in self._choices.items()}
