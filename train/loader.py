"""Endless batches of encoded sessions: one shape per batch, shuffled anew each epoch, resumable at any batch.

    loader = Loader(data, batch_size=4, seed=1, rank=rank, world=world)
    for batch in loader: ...                 # {"latents", "texts", "keys"}, see EncodedSessions.batch

An epoch's order depends on the seed, the epoch's number and the global batch (`batch_size` x `world`), not on how
that is shared out: process r takes the r-th stretch of every global batch, so 1 process with 8 sessions and 2 with 4
see the same. Sessions that do not fill a global batch of their shape sit out this epoch; which ones, is drawn anew
each time. Do not wrap it in a DataLoader: reading is memory-mapped, and the position would run ahead.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping

from anchoredit_model.errors import AnchorEditError

from .encoded import EncodedSessions, Shape


class Loader:
    """See above. `epoch` and `position` say which global batch comes next."""

    def __init__(
        self,
        data: EncodedSessions,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        languages: Mapping[str, float] | None = None,
        text_rows: int | None = None,
    ):
        """batch_size: sessions per process. languages: how often each is chosen where a session has it (default:
        all equally often). text_rows: a fixed number of rows for texts, for compiled models.

        Raises AnchorEditError if no shape has enough sessions for a batch, or a session has no language listed.
        """
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.world = rank, world
        self.languages, self.text_rows = languages, text_rows
        self.epoch, self.position = 0, 0
        self._numbers: dict[Shape, list[int]] = defaultdict(list)
        for number, shape in enumerate(data.shapes):
            self._numbers[shape].append(number)
        if not len(self):
            largest = max(map(len, self._numbers.values()))
            raise AnchorEditError(
                f"a batch of {self.global_batch} sessions is more than there are of any shape ({largest} at most): "
                "give smaller batches or more data"
            )
        self._choices = [self._shares(number) for number in range(len(data))]

    @property
    def global_batch(self) -> int:
        """Sessions per batch over all processes."""
        return self.batch_size * self.world

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(len(numbers) // self.global_batch for numbers in self._numbers.values())

    def __iter__(self) -> Iterator[dict]:
        while True:
            batches, chosen = self.order(self.epoch), self._spoken(self.epoch)
            while self.position < len(batches):
                mine = batches[self.position][self.rank * self.batch_size :][: self.batch_size]
                self.position += 1  # before handing out: a state saved after the step is past this batch
                yield self.data.batch(mine, [chosen[number] for number in mine], self.text_rows)
            self.epoch, self.position = self.epoch + 1, 0

    def order(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, each the numbers of sessions of one shape."""
        rng = random.Random(f"order {self.seed} {epoch}")
        batches = []
        for _, numbers in sorted(self._numbers.items()):
            shuffled = rng.sample(numbers, len(numbers))
            full = len(numbers) - len(numbers) % self.global_batch
            batches += [shuffled[start : start + self.global_batch] for start in range(0, full, self.global_batch)]
        return rng.sample(batches, len(batches))

    def describe(self) -> list[str]:
        """Lines for people: batches, and which sessions sit out."""
        lines = [f"{len(self)} batches of {self.global_batch} sessions per epoch"]
        for (turns, height, width), numbers in sorted(self._numbers.items()):
            over = len(numbers) % self.global_batch
            if over:
                often = "always" if over == len(numbers) else "each epoch"
                lines.append(f"left out {often}: {over} of {len(numbers)} x {turns} turns at {width}x{height}")
        return lines

    @property
    def identity(self) -> dict[str, str | int]:
        """What `epoch` and `position` are a place in: with another one of these they mean other sessions."""
        return {**self.data.identity, "seed": self.seed, "global batch": self.global_batch}

    def _shares(self, number: int) -> tuple[tuple[str, ...], list[float]]:
        """A session's languages and how often each is chosen."""
        there = self.data.languages(number)
        usable = tuple(name for name in there if self.languages is None or self.languages.get(name, 0) > 0)
        if not usable:
            raise AnchorEditError(
                f"a session is in {'/'.join(there)}, and only {'/'.join(self.languages)} is asked for: "
                "add that language or leave out such data"
            )
        return usable, [1.0 if self.languages is None else self.languages[name] for name in usable]

    def _spoken(self, epoch: int) -> list[str]:
        """The language of every session in an epoch."""
        rng = random.Random(f"language {self.seed} {epoch}")
        return [rng.choices(names, shares)[0] for names, shares in self._choices]
