"""Where a stage's sessions come from, as numbered micro-batches of latents and text states.

The same step and micro-batch have the same sessions whoever asks, so a position in the data is a number, and neither
the count of processes nor an interruption changes what is learned.

The data are shards (`*.tar`) in `data.path` or, without a path, the studio itself. Both are encoded once, see `cache`.

Shapes: B sessions, T edits, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from anchoredit_model.config import EditConfig
from anchoredit_model.errors import AnchorEditError

from ..config import DataConfig, StageConfig
from .dataset import EncodedSessions
from .latent_cache import Encoders, prepare
from .loader import Loader
from .procedural import ProceduralConfig, studio_parts
from .session import Part, WorkSizes
from .shards import shard_parts

_SHOWN_SEED = 777_001  # added to the studio's: sessions to look at, of which none is trained on
_COMPILED_FROM = 2000  # sessions from which on a minute of compiling the studio pays


@dataclass(frozen=True, eq=False)
class Batch:
    """latents [B, T + 1, C, h, w] float32, the source first; text [B, T + 1, rows, E], the first one null.

    In a `star` every edit starts from the source image, otherwise from the one before.
    """

    latents: Tensor
    text: Tensor
    star: bool = False

    def to(self, device: torch.device) -> Batch:
        return replace(self, latents=self.latents.to(device), text=self.text.to(device))

    def first(self, turns: int) -> Batch:
        """Return the sessions up to that turn."""
        return replace(self, latents=self.latents[:, : turns + 1], text=self.text[:, : turns + 1])


class Source:
    """Encoded sessions in micro-batches of `settings.batch`, `settings.micro_batches` of them a step.

    `shown` are sessions of one shape to draw samples of, from data of their own if there are any.
    """

    def __init__(
        self,
        data: EncodedSessions,
        settings: StageConfig,
        seed: int = 1,
        shown: EncodedSessions | None = None,
        english: float = 0.5,
    ):
        self.data = data
        self.shown_data = shown or data
        # shapes that never change are what a compiled model wants
        self.rows = max(
            len(states) for table in (data.texts, self.shown_data.texts) for states in table.states.values()
        )
        self.english = english
        languages = _shares_of(data, english)
        self._loaders = [
            Loader(data, settings.batch, seed, micro, settings.micro_batches, languages, self.rows)
            for micro in range(settings.micro_batches)
        ]
        self._reading: dict[int, tuple[int, Iterator[dict], Batch]] = {}  # micro-batch -> step, what follows, its batch

    @property
    def identity(self) -> dict[str, str | int | float]:
        """What a step is a place in, whatever the number of processes."""
        return {**self._loaders[0].identity, "share of English": self.english}

    def batch(self, step: int, micro: int) -> Batch:
        """Return the micro-batch `micro` of step `step` = 0, 1, ..."""
        at, following, batch = self._reading.get(micro, (None, None, None))
        if at == step:
            return batch
        if at is None or at + 1 != step:
            loader = self._loaders[micro]
            loader.epoch, loader.position = divmod(step, len(loader))
            following = iter(loader)
        batch = self._batch(next(following))
        self._reading[micro] = (step, following, batch)
        return batch

    def shown(self, count: int) -> Batch:
        """Up to `count` sessions to draw samples of."""
        kinds = list(zip(self.shown_data.shapes, self.shown_data.stars))
        numbers = [number for number, kind in enumerate(kinds) if kind == kinds[0]][:count]
        languages = [self.shown_data.languages(number)[0] for number in numbers]
        return self._batch(self.shown_data.batch(numbers, languages, self.rows))

    def describe(self) -> list[str]:
        """Lines about what there is, and what is left out."""
        return [*self.data.describe(), *self._loaders[0].describe()]

    def _batch(self, loaded: dict) -> Batch:
        return Batch(loaded["latents"].float(), loaded["texts"].float(), loaded["star"])


def find_parts(
    data: DataConfig, edit: EditConfig, layouts: Sequence[str], device: str = "cpu"
) -> tuple[list[Part], bool]:
    """Return the parts of the data, and whether they are stars, which the studio draws if first in `layouts`.

    Sessions in shards say themselves what they are.
    """
    if not data.path:
        star = layouts[0] == "star"
        return list(_studio(data, edit, star, data.stars if star else data.chains, data.seed, device)), star
    folder = Path(data.path)
    if not folder.is_file() and not any(folder.glob("*.tar")):
        raise AnchorEditError(
            f"no training data in '{folder}'",
            "Give a folder of shards (python -m train data), or --set data.path= for the studio",
        )
    return list(shard_parts(folder)[: data.limit or None]), False


def open_source(
    data: DataConfig,
    settings: StageConfig,
    edit: EditConfig,
    layouts: Sequence[str],
    encoders: Encoders,
    cache: Path,
    accelerator: Accelerator,
) -> Source:
    """Return the data, encoded by all processes together where the cache lacks it."""
    device = str(accelerator.device)
    parts, star = find_parts(data, edit, layouts, device)
    sizes = WorkSizes(edit.resolution, edit.resolution_step, edit.max_aspect_ratio)
    rank, world_size = accelerator.process_index, accelerator.num_processes

    def prepared(parts: list[Part]) -> EncodedSessions:
        barrier, report = accelerator.wait_for_everyone, lambda line: print(line, flush=True)
        found = prepare(parts, encoders, cache, sizes, rank, world_size, data.workers, barrier, report)
        found = found.as_stars() if star else found
        return found if "star" in layouts else found.chains()

    found = prepared(parts)
    shown = None
    if not data.path and data.shown:
        shown = prepared(list(_studio(data, edit, star, data.shown, data.seed + _SHOWN_SEED, device)))
    return Source(found, settings, data.seed, shown, data.english)


def _shares_of(data: EncodedSessions, english: float) -> dict[str, float]:
    """How often each of the data's languages is chosen where a session has several."""
    others = {name for number in range(len(data)) for name in data.languages(number)} - {"en"}
    return {"en": english, **{name: (1 - english) / len(others) for name in sorted(others)}}


def _studio(data: DataConfig, edit: EditConfig, star: bool, count: int, seed: int, device: str) -> Sequence[Part]:
    turns = data.star_turns if star else data.chain_turns
    settings = ProceduralConfig(turns, edit.resolution, edit.resolution, seed, star, data.shares)
    return studio_parts(settings, count, device=device, compiled=data.compile and count >= _COMPILED_FROM)
