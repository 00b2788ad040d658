"""The losses of the three stages, as functions of tensors.

`flow_matching_loss`   stages 1 and 2, and the fake score of stage 3
`regression_loss`      stage 2, where the input is what the sampler has made so far instead of the noisy truth
`consistency_loss`     stage 3a: the student's x0 agrees along the teacher's trajectory
`generator_loss`       stage 3b: distribution matching, with `critic_loss` for its fake score

A model is passed as a `SequenceDenoiser`, which hides its history, its texts and how it is wrapped. Times (0..1000) and
noise levels are separate arguments in float32, though usually sigma = t / 1000. The stages are AnchorEdit's
(https://github.com/xuhang07/AnchorEdit); the source of each formula is given with it.

Shapes: B batch, F frames that learn in one forward, C latent channels, h w latent size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.networks.full_sequence import SequenceDenoiser

_MIN_DIVISOR = 1e-6


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x_s = (1 - s) x0 + s noise (https://arxiv.org/abs/2210.02747); latents [B, F, C, h, w], sigma [B, F]."""
    sigma = _over_latents(sigma)
    return (1 - sigma) * clean.float() + sigma * noise.float()


def x0_of(noisy: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean latents [B, F, C, h, w] that a flow at noise level sigma [B, F] points to: x0 = x_s - s flow."""
    return noisy.float() - _over_latents(sigma) * flow.float()


def turn_weights(turns: int, alpha: float) -> Tensor:
    """Return weights [turns] of turns 1, 2, ...: 1 + alpha * p with p from 0 to 1, as errors accumulate over turns."""
    return 1 + alpha * torch.linspace(0, 1, turns)


def frame_weights(turns: int, alpha: float, replaced: Tensor | None = None, times: Tensor | None = None) -> Tensor:
    """Return weights [B or 1, turns + 1] of the frames of a sequence, on the device of `replaced` or `times`.

    The weight is 0 for the anchor, for frames `replaced` by the model's own output [B, turns + 1], whose input and
    target do not match, and for frames at t = 0, which have no noise to predict.
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
    """Return the mean squared error of the flow against noise - clean (https://arxiv.org/abs/2210.02747).

    flow, clean, noise [B, F, C, h, w]. Frames are weighted by `weights` [B or 1, F] within their sample; samples whose
    weights are all 0 are left out. `spatial_weight` [B, F, 1, h, w] multiplies the error at every position.
    """
    return _weighted(flow.float() - (noise.float() - clean.float()), weights, spatial_weight)


def regression_loss(
    x0: Tensor, clean: Tensor, weights: Tensor | None = None, spatial_weight: Tensor | None = None
) -> Tensor:
    """Return the mean squared error of x0 against the truth [B, F, C, h, w]; weights as in `flow_matching_loss`.

    Where the input is the model's own output, there is no noise that a flow could be compared with.
    """
    return _weighted(x0.float() - clean.float(), weights, spatial_weight)


def consistency_loss(
    student: SequenceDenoiser,
    ema: SequenceDenoiser,
    teacher: SequenceDenoiser,
    clean: Tensor,
    noise: Tensor,
    times: tuple[Tensor, Tensor],
    sigmas: tuple[Tensor, Tensor],
    spatial_weight: Tensor | None = None,
) -> Tensor:
    """Return the loss of consistency distillation (https://arxiv.org/abs/2303.01469, algorithm 2), squared error.

    The guided teacher makes one Euler step from (t, s) to (t', s'); the target of the student's x0 before it is the x0
    of its EMA after it. Latents [B, F, C, h, w]; times (t, t') and sigmas (s, s') [B, F]. Where s' = 0, the target is
    the end of the teacher's step. `spatial_weight` [B, F, 1, h, w] multiplies the error at every position.
    """
    (time, later), (sigma, lower) = times, sigmas
    noisy = add_noise(clean, noise, sigma)
    with torch.no_grad():
        stepped = noisy + _over_latents(lower - sigma) * teacher(noisy, time).float()
        target = x0_of(stepped, ema(stepped, later), lower)
    error = (x0_of(noisy, student(noisy, time), sigma) - target).square()
    return (error if spatial_weight is None else error * spatial_weight).mean()


def distribution_gradient(x0: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Return the gradient of distribution matching, (fake - real) / mean |x0 - real|, all [B, F, C, h, w].

    https://arxiv.org/abs/2311.18828, equations 7 and 8; the mean is over a frame. Values that are not finite count as
    0, so that a bad sample does not affect the rest of the batch.
    """
    scale = (x0 - x0_real).abs().mean(dim=(-3, -2, -1), keepdim=True).clamp(min=_MIN_DIVISOR)
    return torch.nan_to_num((x0_fake - x0_real) / scale, posinf=0.0, neginf=0.0)


def generator_loss(
    x0: Tensor, real: SequenceDenoiser, fake: SequenceDenoiser, noise: Tensor, time: Tensor, sigma: Tensor
) -> Tensor:
    """Return 0.5 * MSE(x0, stopgrad(x0 - gradient)), whose derivative is `distribution_gradient` per element.

    x0 [B, F, C, h, w] is the generator's, with gradient; both scores, the real one guided, get it with fresh noise at
    (time, sigma) [B, F].
    """
    x0 = x0.float()
    with torch.no_grad():
        noisy = add_noise(x0, noise, sigma)
        x0_real = x0_of(noisy, real(noisy, time), sigma)
        x0_fake = x0_of(noisy, fake(noisy, time), sigma)
        target = x0 - distribution_gradient(x0, x0_real, x0_fake)
    return 0.5 * F.mse_loss(x0, target)


def critic_loss(fake: SequenceDenoiser, x0: Tensor, noise: Tensor, time: Tensor, sigma: Tensor) -> Tensor:
    """Return the flow matching loss of the fake score on the generator's x0 [B, F, C, h, w], without its gradient."""
    x0 = x0.detach()
    return flow_matching_loss(fake(add_noise(x0, noise, sigma), time), x0, noise)


def _weighted(difference: Tensor, weights: Tensor | None, spatial_weight: Tensor | None) -> Tensor:
    """Return the mean square of [B, F, C, h, w], each frame and each position by its weight."""
    error = difference.square()
    if spatial_weight is not None:
        error = error * spatial_weight
    frames = error.mean(dim=(-3, -2, -1))  # [B, F]
    if weights is None:
        return frames.mean()
    weights = weights.to(frames).expand_as(frames)
    total = weights.sum(dim=1)  # [B]
    samples = (frames * weights).sum(dim=1) / total.clamp(min=_MIN_DIVISOR)
    return samples.sum() / (total > 0).sum().clamp(min=1)


def _over_latents(sigma: Tensor) -> Tensor:
    """Reshape [B, F] to [B, F, 1, 1, 1], in float32."""
    return sigma.float()[..., None, None, None]
