"""Samplers of a turn: a registry by name, and the loop that they share.

Flow matching (https://arxiv.org/abs/2210.02747): x_s = (1 - s) x0 + s noise, the model predicts the flow noise - x0,
so x0 = x_s - s flow; the model's time is t = 1000 s. A sampler is a schedule of noise levels s and the step from one
level to the next; `nodes/custom_sampling.py` runs the same steps in the host's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)  # of all frames, or one each [B, F]
# (x [C, h, w], time 0..1000) -> flow [C, h, w]; with several seeds both have a batch in front
Denoiser = Callable[[Tensor, float], Tensor]
# (steps done, steps in all, present x0 [C, h, w]); may raise to stop
OnStep = Callable[[int, int, Tensor], None]
# x0 [..., C, h, w] -> x0 with the latent outside a mask restored
LatentConstraint = Callable[[Tensor], Tensor]
# (x, x0, s, next s, noise) -> x at the next noise level
Step = Callable[[Tensor, Tensor, float, float, Iterator[Tensor]], Tensor]


@dataclass(frozen=True)
class Schedule:
    """Hold the model times of all steps, and their noise levels with a final 0."""

    times: tuple[float, ...]
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Sampler:
    """Name a sampler's schedule, made of (timesteps, num_steps, shift), and its step."""

    schedule: Callable[[Sequence[float], int, float], Schedule]
    step: Step
    draws_noise_each_step: bool


def renoise_schedule(timesteps: Sequence[float], num_steps: int = 0, shift: float = 1.0) -> Schedule:
    """Return the schedule at a few-step model's own `timesteps`."""
    return Schedule(tuple(map(float, timesteps)), (*(time / 1000 for time in timesteps), 0.0))


def renoise_step(x: Tensor, x0: Tensor, sigma: float, next_sigma: float, noise: Iterator[Tensor]) -> Tensor:
    """Add fresh noise to the prediction, the few-step rule of consistency models."""
    return (1 - next_sigma) * x0 + next_sigma * next(noise).to(x) if next_sigma else x0


def euler_schedule(timesteps: Sequence[float], num_steps: int, shift: float = 1.0) -> Schedule:
    """Return `num_steps` evenly spaced levels after the shift."""
    sigmas = tuple(shifted_sigmas(num_steps, shift).tolist())
    return Schedule(tuple(1000 * sigma for sigma in sigmas[:-1]), sigmas)


def euler_step(x: Tensor, x0: Tensor, sigma: float, next_sigma: float, noise: Iterator[Tensor]) -> Tensor:
    """Follow the flow, a step of Euler's method."""
    return x0 + next_sigma / sigma * (x - x0)


SAMPLERS = {
    "renoise": Sampler(renoise_schedule, renoise_step, draws_noise_each_step=True),
    "euler": Sampler(euler_schedule, euler_step, draws_noise_each_step=False),
}


def run_sampler(
    denoiser: Denoiser,
    noise: Iterator[Tensor],
    schedule: Schedule,
    step: Step,
    on_step: OnStep | None = None,
    constraint: LatentConstraint | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample x0 [C, h, w] float32 from the first of `noise`, by one prediction per step of the schedule."""
    noise = (drawn.to(device) for drawn in noise)
    x = next(noise)
    total = len(schedule.times)
    levels = zip(schedule.times, schedule.sigmas, schedule.sigmas[1:], strict=False)
    for number, (time, sigma, next_sigma) in enumerate(levels, 1):
        x0 = x - sigma * denoiser(x, time).float()
        x0 = constraint(x0) if constraint else x0
        x = step(x, x0, sigma, next_sigma, noise)
        if on_step is not None:
            on_step(number, total, x0)
    return x


def renoise(
    denoiser: Denoiser,
    noise: Iterator[Tensor],
    timesteps: Sequence[float],
    sigmas: Sequence[float] | None = None,
    **options,
) -> Tensor:
    """Run the renoise sampler; `sigmas` replaces time/1000 (the published look-up), options as in `run_sampler`."""
    schedule = renoise_schedule(timesteps)
    if sigmas is not None:
        if len(sigmas) != len(schedule.times):
            raise ValueError(f"{len(sigmas)} noise levels for {len(schedule.times)} times")
        schedule = Schedule(schedule.times, (*map(float, sigmas), 0.0))
    return run_sampler(denoiser, noise, schedule, renoise_step, **options)


def euler(denoiser: Denoiser, noise: Iterator[Tensor], sigmas: Sequence[float] | Tensor, **options) -> Tensor:
    """Run the euler sampler along `sigmas`, the last of which is 0; options as in `run_sampler`."""
    levels = tuple(map(float, sigmas))
    schedule = Schedule(tuple(1000 * level for level in levels[:-1]), levels)
    return run_sampler(denoiser, noise, schedule, euler_step, **options)


def shifted_sigmas(count: int, shift: float) -> Tensor:
    """Return noise levels [count + 1] from 1 to 0: u = 1, 1 - 1/count, ..., then shift*u / (1 + (shift-1)*u)."""
    u = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).float()


def nearest_sigma(time: Tensor, grid: Tensor) -> Tensor:
    """Return the grid's noise level nearest to time/1000, as the published code looks it up.

    grid [n] has no final 0.
    """
    return grid[(grid * 1000 - time[..., None]).abs().argmin(dim=-1)]


def guided(
    conditional: Callable[[Tensor, Time], Tensor], unconditional: Callable[[Tensor, Time], Tensor], cfg: float
) -> Callable[[Tensor, Time], Tensor]:
    """Return v_u + g (v_c - v_u) (https://arxiv.org/abs/2207.12598); at g = 1 the second forward is left out."""
    if cfg == 1:
        return conditional

    def denoiser(x: Tensor, time: Time) -> Tensor:
        flow = unconditional(x, time)
        return flow + cfg * (conditional(x, time) - flow)

    return denoiser
