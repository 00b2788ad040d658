"""What a stage of the curriculum adds to the engine, and what the engine gives it.

A stage names the networks that learn, and says what one of them minimises on one micro-batch. Everything else -
budget, processes, accumulation, average, states, log - is the engine's.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig
from anchoredit_model.networks.vae import ImageVAE

from ..config import Config, StageConfig
from ..data.source import Batch
from ..networks import Builder, Network, Start


@dataclass(frozen=True)
class Draws:
    """Where the random numbers of one micro-batch come from; the same after a resume.

    own     differs from micro-batch to micro-batch
    shared  is the same for all of a step: for what decides how much work there is (how many turns, which step of
            the sampler), so that processes that exchange shards make the same calls, and none waits for another
    """

    own: torch.Generator
    shared: torch.Generator

    @classmethod
    def of(cls, seed: int, stage: str, learner: str, step: int, micro: int, device: torch.device) -> Draws:
        facts = (seed, stage, learner, step)
        own, shared = (torch.Generator(device).manual_seed(seed_of(*facts, part)) for part in (micro, "shared"))
        return cls(own, shared)

    def chance(self, probability: float) -> bool:
        """Return a shared yes with this probability."""
        return torch.rand((), generator=self.shared, device=self.shared.device).item() < probability

    def number(self, low: int, high: int) -> int:
        """Return a shared whole number, low <= number < high."""
        return int(torch.randint(low, high, (), generator=self.shared, device=self.shared.device))

    def which(self, weights: Sequence[float]) -> int:
        """Return a shared index 0, 1, ... of `weights`, in proportion to them."""
        chances = torch.tensor(weights, device=self.shared.device)
        return int(torch.multinomial(chances, 1, generator=self.shared))

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers of this micro-batch."""
        return torch.randn(tuple(shape), generator=self.own, device=self.own.device)

    def often(self, shape: Sequence[int], probability: float) -> Tensor:
        """Bools of this micro-batch, each true with this probability."""
        return torch.rand(tuple(shape), generator=self.own, device=self.own.device) < probability


def seed_of(*facts: object) -> int:
    """Return a seed in 0..2^63 out of a few plain values."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class StageParts:
    """What a stage is made of besides its settings: sizes as trained, where its weights start, VAE and builder."""

    config: Config
    start: Start
    teacher: Start | None
    vae: ImageVAE | None
    builder: Builder


class Stage(ABC):
    """One stage. `networks` are those that learn; frozen ones are attributes of the stage."""

    name: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ("chain",)  # of the data, in order of preference

    def __init__(self, settings: StageConfig, parts: StageParts):
        self.settings = settings
        self.config = parts.config
        self.vae = parts.vae
        self.stride, self.slots = parts.config.edit.temporal_stride, parts.config.edit.slot_mode
        self.networks = self.build(parts)

    @property
    def main(self) -> Network:
        """The network that the stage is there for; its average is what is sampled and exported."""
        return next(iter(self.networks.values()))

    @property
    @abstractmethod
    def edit(self) -> EditConfig:
        """How the checkpoint of this stage edits."""

    @abstractmethod
    def build(self, parts: StageParts) -> dict[str, Network]:
        """Return the networks that learn, the main one first."""

    @abstractmethod
    def loss(self, learner: str, batch: Batch, draws: Draws, progress: float) -> Tensor:
        """Return what the network called `learner` minimises on this micro-batch.

        `progress` is a share of the budget.
        """

    def learners(self, step: int) -> tuple[str, ...]:
        """Which networks learn in step `step` = 0, 1, ..."""
        return tuple(self.networks)
