"""From noise to a clean latent: 4-step re-noising for distilled models, Euler for the others.

Flow matching (https://arxiv.org/abs/2210.02747): x_s = (1 - s) x0 + s noise, the model predicts noise - x0, so
x0 = x_s - s flow; time t = 1000 s. Re-noising, the few-step rule of consistency models, predicts x0 and takes
fresh noise to the next step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .config import EditConfig
from .errors import AnchorEditError

# (x [C, h, w], time 0..1000) -> flow [C, h, w]; with several seeds both have a batch in front
PredictFlow = Callable[[Tensor, float], Tensor]
# (step done, steps in all, present x0 [C, h, w]); may raise to stop
OnStep = Callable[[int, int, Tensor], None]
# x0 [..., C, h, w] -> x0 with the latent outside a mask put back
LatentConstraint = Callable[[Tensor], Tensor]

_VARIANT_SEED_BYTES = 6  # so that a browser's number holds the seed of a variant


def shifted_sigmas(count: int, shift: float) -> Tensor:
    """Noise levels [count + 1] from 1 to 0: u = 1, 1 - 1/count, ..., then shift*u / (1 + (shift-1)*u)."""
    u = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).float()


def nearest_sigma(time: Tensor, grid: Tensor) -> Tensor:
    """The grid's noise level nearest to time/1000, as the published code looks it up; grid [n] without the final 0."""
    return grid[(grid * 1000 - time[..., None]).abs().argmin(dim=-1)]


def turn_generator(session_seed: int, turn: int) -> torch.Generator:
    """The generator of one turn's noise, always on the CPU, so that every device draws the same numbers."""
    digest = hashlib.sha256(f"anchoredit turn {turn} of {session_seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def variant_seeds(seed: int, count: int) -> list[int]:
    """The seeds of `count` candidates for one turn: the turn's own, then hashes of it, 0 to 2^48 - 1.

    They do not depend on `count`, and neighbouring seeds have no candidate in common.
    """
    if count < 1:
        raise AnchorEditError(f"{count} candidates leave nothing to pick", "Ask for 1 or more")
    digests = (hashlib.sha256(f"anchoredit variant {number} of {seed}".encode()) for number in range(2, count + 1))
    return [seed, *(int.from_bytes(digest.digest()[:_VARIANT_SEED_BYTES], "big") for digest in digests)]


def draws(shape: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """Noise for the start and then for every re-noising, float32 on the CPU."""
    while True:
        yield torch.randn(tuple(shape), generator=generator)


def renoise(
    predict: PredictFlow,
    noise: Iterator[Tensor],
    times: Sequence[float],
    sigmas: Sequence[float] | None = None,
    on_step: OnStep | None = None,
    constraint: LatentConstraint | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """x0 [C, h, w] float32 after one prediction per time; `sigmas` replaces time/1000 (published look-up)."""
    levels = [time / 1000 for time in times] if sigmas is None else [float(sigma) for sigma in sigmas]
    x = next(noise).to(device)
    for step, (time, level) in enumerate(zip(times, levels, strict=True)):
        x0 = x - level * predict(x, float(time)).float()
        x0 = constraint(x0) if constraint else x0
        if step + 1 < len(levels):
            x = (1 - levels[step + 1]) * x0 + levels[step + 1] * next(noise).to(device)
        if on_step is not None:
            on_step(step + 1, len(levels), x0)
    return x0


def euler(
    predict: PredictFlow,
    noise: Iterator[Tensor],
    sigmas: Sequence[float] | Tensor,
    on_step: OnStep | None = None,
    constraint: LatentConstraint | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """x0 [C, h, w] float32 by Euler's rule along `sigmas`, the last of which is 0."""
    levels = [float(sigma) for sigma in sigmas]
    x = next(noise).to(device)
    for step, (level, following) in enumerate(zip(levels, levels[1:])):
        x0 = x - level * predict(x, 1000 * level).float()
        x0 = constraint(x0) if constraint else x0
        x = x0 + following / level * (x - x0)
        if on_step is not None:
            on_step(step + 1, len(levels) - 1, x0)
    return x


def guided(conditional: PredictFlow, unconditional: PredictFlow, guidance: float) -> PredictFlow:
    """v_u + g (v_c - v_u) (https://arxiv.org/abs/2207.12598); at g = 1 the second forward is left out."""
    if guidance == 1:
        return conditional

    def predict(x: Tensor, time: float) -> Tensor:
        flow = unconditional(x, time)
        return flow + guidance * (conditional(x, time) - flow)

    return predict


def sample(
    predict: PredictFlow,
    shape: Sequence[int],
    edit: EditConfig,
    session_seed: int | Sequence[int],
    turn: int,
    on_step: OnStep | None = None,
    constraint: LatentConstraint | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One turn's clean latent [C, h, w] by the sampler the checkpoint was trained for.

    Several seeds make a batch [B, C, h, w]; `predict` then takes and gives batches, on_step and constraint too.
    """
    if isinstance(session_seed, int):
        noise = draws(shape, turn_generator(session_seed, turn))
    else:
        noise = map(torch.stack, zip(*(draws(shape, turn_generator(seed, turn)) for seed in session_seed)))
    if edit.sampler == "renoise":
        return renoise(predict, noise, edit.timesteps, on_step=on_step, constraint=constraint, device=device)
    sigmas = shifted_sigmas(edit.num_steps, edit.shift)
    return euler(predict, noise, sigmas, on_step=on_step, constraint=constraint, device=device)


def step_count(edit: EditConfig) -> int:
    """How many predictions a turn takes."""
    return len(edit.timesteps) if edit.sampler == "renoise" else edit.num_steps


def in_words(edit: EditConfig) -> str:
    """How a turn is sampled, as a line for people."""
    if edit.sampler == "renoise":
        return f"{len(edit.timesteps)} re-noising steps, guidance {edit.cfg:g}"
    return f"{edit.num_steps} Euler steps, shift {edit.shift:g}, guidance {edit.cfg:g}"


def with_steps(edit: EditConfig, count: int | None) -> EditConfig:
    """The same settings with another number of steps; a re-noising model gets evenly spaced times."""
    if count is None:
        return edit
    if not 1 <= count <= 1000:  # there are no more times than that
        raise AnchorEditError(f"{count} steps make no image", "Ask for 1 to 1000")
    return replace(edit, timesteps=tuple(round(1000 * (1 - n / count)) for n in range(count)), num_steps=count)
