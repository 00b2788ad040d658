"""Sampling of timesteps and their noise levels.

Time t runs from 0 (clean) to 1000 (noise), the noise level from 0 to 1: sigma = t / 1000
(https://arxiv.org/abs/2210.02747). Both stay in float32: in bfloat16 the distance of neighbouring times in consistency
distillation is off by up to 64 %. Random numbers are sampled on the generator's device.

Shapes: B batch, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.samplers import shifted_sigmas

NOISE = 1000  # the time of pure noise


@dataclass(frozen=True)
class TimestepConfig:
    """Configure the distribution of the times of noisy frames.

    low, high          of the uniform part; low itself is never sampled
    shift              moves times towards noise, s = shift*u / (1 + (shift-1)*u) with u = t / 1000
    sampler_timesteps  the sampler's own times, the noisiest first
    sampler_weights    their weights (default: equal)
    sampler_share      probability that a time is one of these

    Raises AnchorEditError for a share without times, and for a wrong number of weights.
    """

    low: float = 0
    high: float = NOISE
    shift: float = 1.0
    sampler_timesteps: tuple[float, ...] = ()
    sampler_weights: tuple[float, ...] = ()
    sampler_share: float = 0.0

    def __post_init__(self):
        if self.sampler_share and not self.sampler_timesteps:
            raise AnchorEditError(
                f"times.sampler_share must be 0 without times.sampler_timesteps, got {self.sampler_share}",
                "List them in times.sampler_timesteps, or set it to 0",
            )
        if self.sampler_weights and (
            len(self.sampler_weights) != len(self.sampler_timesteps) or min(self.sampler_weights) < 0
        ):
            raise AnchorEditError(
                f"times.sampler_weights must be {len(self.sampler_timesteps)} numbers of 0 or more, one for each of "
                f"times.sampler_timesteps, got {list(self.sampler_weights)}",
                "Give each a weight, or none at all",
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight for each of the sampler's times."""
        return self.sampler_weights or (1.0,) * len(self.sampler_timesteps)


def sigma_of(times: Tensor) -> Tensor:
    """Return the noise levels of times in 0..1000, same shape; raise TypeError for times that were rounded."""
    if times.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"times must be float32, got {times.dtype}")
    return times / NOISE


def shifted(times: Tensor, shift: float) -> Tensor:
    """Return times moved towards noise, as larger images need (https://arxiv.org/abs/2403.03206, 5.3.2)."""
    u = sigma_of(times)
    return NOISE * shift * u / (1 + (shift - 1) * u)


def sample_times(shape: Sequence[int], sampling: TimestepConfig, generator: torch.Generator) -> Tensor:
    """Sample independent times of this shape, float32; never 0, so that there is always noise to predict."""
    u = 1 - _uniform(shape, generator)  # 0 < u <= 1
    times = shifted(sampling.low + (sampling.high - sampling.low) * u, sampling.shift)
    if not sampling.sampler_share:
        return times
    sampler_timesteps = torch.tensor(sampling.sampler_timesteps, dtype=torch.float32, device=generator.device)
    weights = torch.tensor(sampling.weights, device=generator.device)
    picked = torch.multinomial(weights, times.numel(), replacement=True, generator=generator).view(tuple(shape))
    return torch.where(_uniform(shape, generator) < sampling.sampler_share, sampler_timesteps[picked], times)


def forcing_times(
    batch: int, frames: int, sampling: TimestepConfig, generator: torch.Generator, clean_history_prob: float = 0.5
) -> Tensor:
    """Sample times [B, F] for diffusion forcing (https://arxiv.org/abs/2407.01392), F >= 2.

    Every frame has its own time. With probability `clean_history_prob` a sequence instead is as at inference: one
    random frame k >= 1 behind a history at t = 0.
    """
    times = sample_times((batch, frames), sampling, generator)
    target = torch.randint(1, frames, (batch, 1), generator=generator, device=generator.device)
    as_inferred = _uniform((batch, 1), generator) < clean_history_prob
    history = torch.arange(frames, device=generator.device) < target
    return times.masked_fill(as_inferred & history, 0.0)


def consistency_times(
    shape: Sequence[int], generator: torch.Generator, count: int = 48, shift: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Sample neighbours (t, t') on the grid of `count` steps, t > t', each of this shape.

    The last t' is 0, where x0(x, 0) = x holds trivially: the boundary condition that ties the student to the data
    (https://arxiv.org/abs/2303.01469). The published code stops one step before it.
    """
    grid = NOISE * shifted_sigmas(count, shift).to(generator.device)
    index = torch.randint(count, tuple(shape), generator=generator, device=generator.device)
    return grid[index], grid[index + 1]


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device)
