"""One turn's clean latent: its own noise, by the sampler that the checkpoint was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .config import EditConfig
from .errors import AnchorEditError
from .noise import turn_generator, turn_noise
from .samplers import SAMPLERS, Denoiser, LatentConstraint, OnStep, Schedule, run_sampler


def schedule_of(edit: EditConfig) -> Schedule:
    """Return the times and noise levels of a turn."""
    return SAMPLERS[edit.sampler].schedule(edit.timesteps, edit.num_steps, edit.shift)


def step_count(edit: EditConfig) -> int:
    """Count the predictions of a turn."""
    return len(schedule_of(edit).times)


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    edit: EditConfig,
    session_seed: int | Sequence[int],
    turn: int,
    on_step: OnStep | None = None,
    constraint: LatentConstraint | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample one turn's clean latent [C, h, w].

    Several seeds make a batch [B, C, h, w]; the denoiser then maps batches, on_step and constraint too.
    """
    if isinstance(session_seed, int):
        noise = turn_noise(shape, turn_generator(session_seed, turn))
    else:
        noise = map(torch.stack, zip(*(turn_noise(shape, turn_generator(seed, turn)) for seed in session_seed)))
    step = SAMPLERS[edit.sampler].step
    return run_sampler(denoiser, noise, schedule_of(edit), step, on_step, constraint, device)


def describe_sampling(edit: EditConfig) -> str:
    """Say how a turn is sampled, in one line for people."""
    shift = "" if SAMPLERS[edit.sampler].draws_noise_each_step else f", shift {edit.shift:g}"
    return f"{step_count(edit)} {edit.sampler} steps{shift}, cfg {edit.cfg:g}"


def with_steps(edit: EditConfig, count: int | None) -> EditConfig:
    """Return the same settings with another number of steps; a few-step model gets evenly spaced times."""
    if count is None:
        return edit
    if not 1 <= count <= 1000:  # there are no more times than that
        raise AnchorEditError(f"steps must be 1 to 1000, got {count}", "Ask for 1 to 1000")
    times = tuple(round(1000 * (1 - number / count)) for number in range(count))
    return replace(edit, timesteps=times, num_steps=count)
