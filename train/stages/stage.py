"""The interface between the engine and a stage of the curriculum.

A stage builds the networks that learn and computes the loss of one of them on one micro-batch. Everything else -
budget, processes, gradient accumulation, EMA, training states, log - is the engine's.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig
from anchoredit_model.networks.vae import ImageVAE

from ..config import Config, StageConfig
from ..data.source import Batch
from ..networks import NetworkBuilder, TrainableNetwork
from ..weight_init import WeightInit

Settings = TypeVar("Settings", bound=StageConfig)


@dataclass(frozen=True)
class RandomStreams:
    """Hold the random generators of one micro-batch, seeded by its step, so that a resumed run repeats them.

    local   differs between the micro-batches of a step
    shared  is the same for all of them: for what decides the amount of work (how many turns, which step of the
            sampler), so that processes that exchange shards make the same calls and none waits for another
    """

    local: torch.Generator
    shared: torch.Generator

    @classmethod
    def of(cls, seed: int, stage: str, learner: str, step: int, micro: int, device: torch.device) -> RandomStreams:
        key = (seed, stage, learner, step)
        return cls(*(torch.Generator(device).manual_seed(derive_seed(*key, part)) for part in (micro, "shared")))

    def bernoulli(self, probability: float) -> bool:
        """Sample a shared yes with this probability."""
        return torch.rand((), generator=self.shared, device=self.shared.device).item() < probability

    def integer(self, low: int, high: int) -> int:
        """Sample a shared integer in low <= number < high."""
        return int(torch.randint(low, high, (), generator=self.shared, device=self.shared.device))

    def categorical(self, weights: Sequence[float]) -> int:
        """Sample a shared index of `weights`, in proportion to them."""
        probabilities = torch.tensor(weights, device=self.shared.device)
        return int(torch.multinomial(probabilities, 1, generator=self.shared))

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Sample local standard normal noise."""
        return torch.randn(tuple(shape), generator=self.local, device=self.local.device)

    def mask(self, shape: Sequence[int], probability: float) -> Tensor:
        """Sample local booleans, each true with this probability."""
        return torch.rand(tuple(shape), generator=self.local, device=self.local.device) < probability


def derive_seed(*values: object) -> int:
    """Return a seed in 0..2^63 for a few plain values."""
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class StageParts:
    """Hold the parts that a stage is built from, besides its settings; only stage 3 has a teacher."""

    config: Config
    init: WeightInit
    teacher: WeightInit | None
    vae: ImageVAE | None
    builder: NetworkBuilder


class Stage(ABC, Generic[Settings]):
    """Train networks for one stage; `networks` are those that learn, frozen ones are attributes of the subclass."""

    name: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ("chain",)  # of the data, in order of preference

    def __init__(self, settings: Settings, parts: StageParts):
        self.settings = settings
        self.config = parts.config
        self.vae = parts.vae
        self.stride, self.slots = parts.config.edit.temporal_stride, parts.config.edit.slot_mode
        self.networks = self.build(parts)

    @property
    def main(self) -> TrainableNetwork:
        """The network that this stage trains for its checkpoint: its EMA is sampled and exported."""
        return next(iter(self.networks.values()))

    @property
    @abstractmethod
    def edit(self) -> EditConfig:
        """How the checkpoint of this stage edits."""

    @abstractmethod
    def build(self, parts: StageParts) -> dict[str, TrainableNetwork]:
        """Return the networks that learn, the main one first."""

    @abstractmethod
    def loss(self, learner: str, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        """Return the loss of the network called `learner` on one micro-batch; `progress` is a share of the budget."""

    def learners(self, step: int) -> tuple[str, ...]:
        """Return the names of the networks that learn in step 0, 1, ..."""
        return tuple(self.networks)
