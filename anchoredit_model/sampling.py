"""One turn's clean latent: its own noise, by the sampler that the checkpoint was trained for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .config import EditConfig
from .errors import AnchorEditError
from .samplers import SAMPLERS, Denoiser, LatentConstraint, OnStep, Schedule, run_sampler

_VARIATION_SEED_BYTES = 6  # so that a browser's number holds the seed of a variation


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


def turn_noise(shape: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """Draw noise for the start and then for every step that takes some, float32 on the CPU."""
    while True:
        yield torch.randn(tuple(shape), generator=generator)


def turn_generator(session_seed: int, turn: int) -> torch.Generator:
    """Return the generator of one turn's noise, always on the CPU, so that every device draws the same numbers."""
    digest = hashlib.sha256(f"anchoredit turn {turn} of {session_seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def variation_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of `count` variations of one turn: the turn's own, then hashes of it, 0 to 2^48 - 1.

    They do not depend on `count`, and neighbouring seeds have no variation in common.
    """
    if count < 1:
        raise AnchorEditError(f"the number of variations must be 1 or more, got {count}", "Ask for 1 or more")
    digests = (hashlib.sha256(f"anchoredit variant {number} of {seed}".encode()) for number in range(2, count + 1))
    return [seed, *(int.from_bytes(digest.digest()[:_VARIATION_SEED_BYTES], "big") for digest in digests)]


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
