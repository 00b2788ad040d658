"""The sessions of a stage, as numbered micro-batches of latents and text states.

A step and a micro-batch have the same sessions in every process, so a position in the data is a number, and neither
the number of processes nor an interruption changes the training.

The data are shards (`*.tar`) in `data.path` or, without a path, sessions of the studio. They are encoded once, see
`latent_cache`.

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
from .dataset import EncodedSessions, LoadedBatch
from .latent_cache import Encoders, prepare
from .loader import Loader
from .procedural import ProceduralConfig, studio_parts
from .session import Part, WorkSizes
from .shards import shard_parts

_PREVIEW_SEED = 777_001  # added to the studio's seed: sessions for previews are not trained on
_COMPILED_FROM = 2000  # sessions: from here on a minute of compiling the renderer pays


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold latents [B, T + 1, C, h, w] float32, the source first, and text [B, T + 1, rows, E], the first one null.

    In a `star` every edit starts from the source image, otherwise from the one before.
    """

    latents: Tensor
    text: Tensor
    star: bool = False

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return replace(self, latents=self.latents.to(device), text=self.text.to(device))

    def first(self, turns: int) -> Batch:
        """Return the first turns of the sessions."""
        return replace(self, latents=self.latents[:, : turns + 1], text=self.text[:, : turns + 1])


class Source:
    """Serve encoded sessions in micro-batches of `settings.batch`, `settings.micro_batches` of them per step.

    `preview` are sessions to sample for the log; without any, those of `data`.
    """

    def __init__(
        self,
        data: EncodedSessions,
        settings: StageConfig,
        seed: int = 1,
        preview: EncodedSessions | None = None,
        english_prob: float = 0.5,
    ):
        self.data = data
        self.preview_data = preview or data
        # the same number of rows in every batch, so that a model is compiled once
        self.rows = max(
            len(states) for table in (data.texts, self.preview_data.texts) for states in table.states.values()
        )
        self.english_prob = english_prob
        languages = _language_shares(data, english_prob)
        self._loaders = [
            Loader(data, settings.batch, seed, micro, settings.micro_batches, languages, self.rows)
            for micro in range(settings.micro_batches)
        ]
        self._current: dict[int, tuple[int, Iterator[LoadedBatch], Batch]] = {}  # micro-batch -> step, rest, batch

    @property
    def identity(self) -> dict[str, str | int | float]:
        """Return what determines the sessions of every step, for any number of processes."""
        return {**self._loaders[0].identity, "share of English": self.english_prob}

    def batch(self, step: int, micro: int) -> Batch:
        """Return the micro-batch `micro` of step `step` = 0, 1, ..."""
        current = self._current.get(micro)
        if current and current[0] == step:
            return current[2]
        if current and current[0] + 1 == step:
            rest = current[1]
        else:
            loader = self._loaders[micro]
            loader.epoch, loader.position = divmod(step, len(loader))
            rest = iter(loader)
        batch = _as_batch(next(rest))
        self._current[micro] = (step, rest, batch)
        return batch

    def preview(self, count: int) -> Batch:
        """Return up to `count` sessions of one shape to sample for the log."""
        kinds = list(zip(self.preview_data.shapes, self.preview_data.stars))
        numbers = [number for number, kind in enumerate(kinds) if kind == kinds[0]][:count]
        languages = [self.preview_data.languages(number)[0] for number in numbers]
        return _as_batch(self.preview_data.batch(numbers, languages, self.rows))

    def describe(self) -> list[str]:
        """Describe the sessions, and those that are left out, in lines."""
        return [*self.data.describe(), *self._loaders[0].describe()]


def find_parts(
    data: DataConfig, edit: EditConfig, layouts: Sequence[str], device: str = "cpu"
) -> tuple[list[Part], bool]:
    """Return the parts of the data, and whether all are stars: the studio makes the first of `layouts`.

    In shards each session has a layout of its own.
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
    """Return the data of a stage; all processes together encode what the cache lacks."""
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
    preview = None
    if not data.path and data.preview:
        preview = prepared(list(_studio(data, edit, star, data.preview, data.seed + _PREVIEW_SEED, device)))
    return Source(found, settings, data.seed, preview, data.english_prob)


def _as_batch(loaded: LoadedBatch) -> Batch:
    return Batch(loaded["latents"].float(), loaded["texts"].float(), loaded["star"])


def _language_shares(data: EncodedSessions, english_prob: float) -> dict[str, float]:
    """Return how often each language of the data is chosen for a session in several."""
    others = {name for number in range(len(data)) for name in data.languages(number)} - {"en"}
    return {"en": english_prob, **{name: (1 - english_prob) / len(others) for name in sorted(others)}}


def _studio(data: DataConfig, edit: EditConfig, star: bool, count: int, seed: int, device: str) -> Sequence[Part]:
    turns = data.star_turns if star else data.chain_turns
    settings = ProceduralConfig(turns, edit.resolution, edit.resolution, seed, star, data.shares)
    return studio_parts(settings, count, device=device, compiled=data.compile and count >= _COMPILED_FROM)
