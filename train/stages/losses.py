"""What the three stages minimise, as functions of tensors and nothing else.

`flow_matching_loss`   stages 1 and 2, and the fake score of stage 3
`regression_loss`      stage 2 where an image is not the noisy truth but what the sampler has made of it so far
`consistency_loss`     stage 3a: the student's x0 agrees along the teacher's path
`generator_loss`       stage 3b: distribution matching, with `critic_loss` for its fake score

A model comes in as a `SequenceDenoiser`, which hides its history, its texts and how it is wrapped. Times (0..1000) and
noise levels are given apart, in float32, though usually sigma = t / 1000. The stages are AnchorEdit's
(https://github.com/xuhang07/AnchorEdit); the sources of the formulas stand with them.

Legend: B batch, F frames that are learned in one forward, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (noisy [B, F, C, h, w], times [B, F] in 0..1000) -> flow [B, F, C, h, w]
SequenceDenoiser = Callable[[Tensor, Tensor], Tensor]

_SMALLEST = 1e-6  # of anything that is divided by


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_s = (1 - s) x0 + s noise (https://arxiv.org/abs/2210.02747); latents [B, F, C, h, w], sigma [B, F]."""
    sigma = _over_latents(sigma)
    return (1 - sigma) * clean.float() + sigma * noise.float()


def x0_of(noisy: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean latents [B, F, C, h, w] that a flow at noise level sigma [B, F] points to: x0 = x_s - s flow."""
    return noisy.float() - _over_latents(sigma) * flow.float()


def turn_weights(turns: int, alpha: float) -> Tensor:
    """Weights [turns] of turns 1, 2, ...: 1 + alpha * p, p from 0 to 1, since errors add up towards the end."""
    return 1 + alpha * torch.linspace(0, 1, turns)


def frame_weights(turns: int, alpha: float, replaced: Tensor | None = None, times: Tensor | None = None) -> Tensor:
    """Weights [B or 1, turns + 1] of a sequence's frames, on the CPU unless `replaced` or `times` are elsewhere.

    The anchor gets none; nor do frames that were `replaced` by the model's own output [B, turns + 1], whose
    input and target do not belong together, and frames at t = 0, which hold no noise to find.
    """
    weights = F.pad(turn_weights(turns, alpha), (1, 0))[None]
    if replaced is not None:
        weights = weights.to(replaced.device) * ~replaced
    if times is not None:
        weights = weights.to(times.device) * (times > 0)
    return weights


def flow_matching_loss(
    flow: Tensor, clean: Tensor, noise: Tensor, weights: Tensor | None = None, spatial_weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of the flow against noise - clean (https://arxiv.org/abs/2210.02747), all [B, F, C, h, w].

    Frames count by `weights` [B or 1, F] within their sample; a sample without any weight does not count.
    `spatial_weight` [B, F, 1, h, w] multiplies the error position by position.
    """
    return _weighted(flow.float() - (noise.float() - clean.float()), weights, spatial_weight)


def regression_loss(
    x0: Tensor, clean: Tensor, weights: Tensor | None = None, spatial_weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of x0 against the truth, all [B, F, C, h, w]; weights as in `flow_matching_loss`.

    Where what a model made is its own input no noise is left that a flow could be held against.
    """
    return _weighted(x0.float() - clean.float(), weights, spatial_weight)


def consistency_loss(
    student: SequenceDenoiser,
    average: SequenceDenoiser,
    teacher: SequenceDenoiser,
    clean: Tensor,
    noise: Tensor,
    times: tuple[Tensor, Tensor],
    sigmas: tuple[Tensor, Tensor],
    spatial_weight: Tensor | None = None,
) -> Tensor:
    """Consistency distillation (https://arxiv.org/abs/2303.01469, algorithm 2), squared error.

    The teacher, guided by `sampling.guided`, makes one Euler step from (t, s) to (t', s'); the student's x0 before
    it is pulled to that of its moving `average` after it. Latents [B, F, C, h, w]; times (t, t') and sigmas
    (s, s') [B, F]. Where s' = 0, the target is what the teacher arrives at. `spatial_weight` [B, F, 1, h, w] multiplies
    the error position by position.
    """
    (time, later), (sigma, lower) = times, sigmas
    noisy = add_noise(clean, noise, sigma)
    with torch.no_grad():
        stepped = noisy + _over_latents(lower - sigma) * teacher(noisy, time).float()
        target = x0_of(stepped, average(stepped, later), lower)
    error = (x0_of(noisy, student(noisy, time), sigma) - target).square()
    return (error if spatial_weight is None else error * spatial_weight).mean()


def distribution_gradient(x0: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Where the generator's x0 should not go: (fake - real) / mean |x0 - real|, all [B, F, C, h, w].

    Distribution matching distillation (https://arxiv.org/abs/2311.18828, equations 7 and 8); the mean is over a
    sample's frame. A value that is not finite counts as 0, so that one bad sample does not spoil the batch.
    """
    scale = (x0 - x0_real).abs().mean(dim=(-3, -2, -1), keepdim=True).clamp(min=_SMALLEST)
    return torch.nan_to_num((x0_fake - x0_real) / scale, posinf=0.0, neginf=0.0)


def generator_loss(
    x0: Tensor, real: SequenceDenoiser, fake: SequenceDenoiser, noise: Tensor, time: Tensor, sigma: Tensor
) -> Tensor:
    """0.5 * MSE(x0, stopgrad(x0 - gradient)), whose derivative is `distribution_gradient` (per element).

    x0 [B, F, C, h, w] is the generator's, with gradient; both scores, the real one guided, see it with fresh
    noise at (time, sigma) [B, F].
    """
    x0 = x0.float()
    with torch.no_grad():
        noisy = add_noise(x0, noise, sigma)
        x0_real = x0_of(noisy, real(noisy, time), sigma)
        x0_fake = x0_of(noisy, fake(noisy, time), sigma)
        target = x0 - distribution_gradient(x0, x0_real, x0_fake)
    return 0.5 * F.mse_loss(x0, target)


def critic_loss(fake: SequenceDenoiser, x0: Tensor, noise: Tensor, time: Tensor, sigma: Tensor) -> Tensor:
    """Flow matching of the fake score on what the generator makes, x0 [B, F, C, h, w] without its gradient."""
    x0 = x0.detach()
    return flow_matching_loss(fake(add_noise(x0, noise, sigma), time), x0, noise)


def _weighted(difference: Tensor, weights: Tensor | None, spatial_weight: Tensor | None) -> Tensor:
    """Mean square of [B, F, C, h, w], each frame by its weight, each position by its spatial_weight."""
    error = difference.square()
    if spatial_weight is not None:
        error = error * spatial_weight
    frames = error.mean(dim=(-3, -2, -1))  # [B, F]
    if weights is None:
        return frames.mean()
    weights = weights.to(frames).expand_as(frames)
    total = weights.sum(dim=1)  # [B]
    samples = (frames * weights).sum(dim=1) / total.clamp(min=_SMALLEST)
    return samples.sum() / (total > 0).sum().clamp(min=1)


def _over_latents(sigma: Tensor) -> Tensor:
    """[B, F] -> [B, F, 1, 1, 1] float32."""
    return sigma.float()[..., None, None, None]
