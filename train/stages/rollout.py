"""Self-rollout: histories that the model samples itself, so that training meets what inference will.

`rollout` samples a batch of sessions turn by turn from a K/V cache, as inference does and with the same samplers,
without a gradient. `one_pass` is the cheap form: one prediction of x0 from the noisy truth. Either replaces the truth
in the frames that `sample_replaced` selects; as frames of a noisy sequence these have no loss
(`losses.frame_weights`). Schedules over the training are at the end. Exposure bias and its remedy:
https://arxiv.org/abs/1506.03099, https://arxiv.org/abs/2506.08009.

Shapes: B batch, T turns, S noises per turn, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from anchoredit_model.config import EditConfig, MemoryPolicy
from anchoredit_model.memory.frame_kv import FrameKV
from anchoredit_model.memory.visibility import FrameView, frame_view, sequence_views
from anchoredit_model.networks.full_sequence import SequenceDenoiser
from anchoredit_model.networks.transformer import CausalWanTransformer, TextContext
from anchoredit_model.samplers import Denoiser, euler, guided, renoise, shifted_sigmas

from .losses import add_noise, x0_of


class SessionCache:
    """Hold the K/V of a batch of sessions of one length, frame by frame, streaming as in `KVCacheManager`.

    Frames that no later turn can see are dropped. Encoding has no gradient; what is predicted from the cache has one.
    `model` is the bare module; `forward` is what predictions call if that is wrapped (DDP).
    """

    def __init__(
        self,
        model: CausalWanTransformer,
        policy: MemoryPolicy | None = None,
        slots: str = "bounded",
        stride: int = 4,
        forward: nn.Module | None = None,
    ):
        self.model = model
        self.forward = forward or model
        self.policy = policy
        self.slots = slots
        self.stride = stride
        self.frames = 0
        self._kv: dict[int, FrameKV] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all K/V held."""
        return sum(kv.nbytes for kv in self._kv.values())

    @torch.no_grad()
    def encode_frame(self, latent: Tensor, text: Tensor | TextContext) -> None:
        """Add the K/V of one clean frame [B, C, h, w] with the text [B, 1, rows, E]."""
        view, visible = self._visible()
        self._kv[self.frames], _ = self.model.encode_frame(latent[:, :, None], text, view, self.stride, visible)
        self.frames += 1
        seen = self._view().frames
        self._kv = {frame: kv for frame, kv in self._kv.items() if frame in seen}

    def denoiser(self, text: Tensor | TextContext) -> SequenceDenoiser:
        """Return the denoiser of the next frame [B, 1, C, h, w] with the text [B, 1, rows, E] and the present K/V."""
        view, visible = self._visible()

        def denoiser(noisy: Tensor, times: Tensor) -> Tensor:
            flow = self.forward(noisy.transpose(1, 2), times, text, (view,), self.stride, visible)
            return flow.transpose(1, 2)

        return denoiser

    def _view(self) -> FrameView:
        if self.policy is None:
            return sequence_views(self.frames + 1, None, self.slots)[-1]
        return frame_view(self.frames, self.policy, self.slots)

    def _visible(self) -> tuple[FrameView, tuple[FrameKV, ...]]:
        view = self._view()
        return view, tuple(self._kv[frame] for frame in view.frames)


@torch.no_grad()
def rollout(
    cache: SessionCache,
    latents: Tensor,
    text: Tensor,
    noise: Tensor,
    edit: EditConfig,
    replaced: Tensor | None = None,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Sample sessions [B, T + 1, C, h, w] float32 turn by turn, from the anchor `latents[:, 0]`.

    cache     empty; afterwards it has the K/V of all frames but the last
    latents   [B, 1 or more, C, h, w], the truth
    text      [B, T + 1 or more, rows, E], the null instruction first
    noise     [T, S, B, C, h, w] for T turns: the start and every re-noising of `edit.sampler`, S = `noise_count(edit)`
    edit      the sampler; for its `cfg` the unconditional text is that of frame 0
    replaced  [B, T + 1] bool: frames that are False stay the truth, which later ones see (default: all True)
    sigmas    noise levels instead of timesteps / 1000
    """
    frames = [latents[:, 0].float()]
    for turn, turn_noise in enumerate(noise, start=1):
        cache.encode_frame(frames[-1], cache.model.embed_text(text[:, turn - 1 : turn]))
        denoiser = cache.denoiser(cache.model.embed_text(text[:, turn : turn + 1]))
        if edit.cfg != 1:
            denoiser = guided(denoiser, cache.denoiser(cache.model.embed_text(text[:, :1])), edit.cfg)
        x0 = _sample(denoiser, turn_noise[:, :, None], edit, sigmas)[:, 0]
        if replaced is not None:
            x0 = torch.where(replaced[:, turn, None, None, None], x0, latents[:, turn].float())
        frames.append(x0)
    return torch.stack(frames, dim=1)


def noise_count(edit: EditConfig) -> int:
    """Return how many noises the sampler uses in one turn."""
    return len(edit.timesteps) if edit.sampler == "renoise" else 1


def self_rollout_history(
    model: CausalWanTransformer,
    latents: Tensor,
    text: Tensor,
    replaced: Tensor,
    edit: EditConfig,
    sample_noise: Callable[[Sequence[int]], Tensor],
    *,
    slots: str,
    stride: int,
) -> Tensor:
    """Return the history [B, T, C, h, w] of sessions [B, T + 1, ...], with `replaced` frames [B, T + 1] sampled.

    They are sampled as at inference, turn by turn from the K/V cache, but without guidance; `sample_noise` takes a
    shape.
    """
    turns = latents.shape[1] - 2  # the last frame is not history
    noise = sample_noise((turns, noise_count(edit), *latents[:, 0].shape))
    cache = SessionCache(model, slots=slots, stride=stride)
    return rollout(cache, latents, text, noise, replace(edit, cfg=1.0), replaced)


def last_step_x0(
    denoiser: SequenceDenoiser, noise: Tensor, step: int, times: Sequence[float], sigmas: Sequence[float] | None = None
) -> Tensor:
    """Run the few-step sampler up to step 0, 1, ... and return x0 [B, F, C, h, w], with the gradient of that step only.

    noise [step + 1 or more, B, F, C, h, w]: the start and the re-noisings, in the sampler's order. Distribution
    matching scores this x0 (backward simulation, https://arxiv.org/abs/2405.14867, 4.5).
    """
    levels = [time / 1000 for time in times] if sigmas is None else list(sigmas)
    sigma = torch.full(noise.shape[1:3], levels[step], device=noise.device)
    noisy = noise[0]
    if step:
        with torch.no_grad():
            x0 = renoise(_at_one_time(denoiser), iter(noise), times[:step], levels[:step], device=noise.device)
        noisy = add_noise(x0, noise[step], sigma)
    return x0_of(noisy, denoiser(noisy, torch.full_like(sigma, times[step])), sigma)


@torch.no_grad()
def one_pass(denoiser: SequenceDenoiser, clean: Tensor, noise: Tensor, times: Tensor, sigma: Tensor) -> Tensor:
    """Return x0 [B, F, C, h, w] of one prediction from the noisy truth, the published stand-in for a rollout."""
    noisy = add_noise(clean, noise, sigma)
    return x0_of(noisy, denoiser(noisy, times), sigma)


def replace_frames(latents: Tensor, sampled: Tensor, replaced: Tensor) -> Tensor:
    """Return latents [B, F, C, h, w] with the frames in `replaced` [B, F] taken from `sampled`."""
    return torch.where(replaced[..., None, None, None], sampled, latents)


def sample_replaced(batch: int, frames: int, probability: float, generator: torch.Generator) -> Tensor:
    """Sample the frames [B, frames] to replace: never the anchor, nor the last one, which no other frame sees."""
    replaced = torch.rand(batch, frames, generator=generator, device=generator.device) < probability
    replaced[:, 0] = replaced[:, -1] = False
    return replaced


def ramp(progress: float, start: float, end: float) -> float:
    """Return 0 until `start`, 1 from `end` on, linear in between; all are shares of the training."""
    return float(progress >= end) if end <= start else min(1.0, max(0.0, (progress - start) / (end - start)))


def rollout_probability(progress: float, start: float, end: float, peak: float) -> float:
    """Return the probability of self-rollout at the share `progress` of training: 0 to `start`, `peak` from `end`."""
    return peak * ramp(progress, start, end)


def turns_at(progress: float, first: int, last: int, end: float) -> int:
    """Return the turns per session after a share `progress` of the training: from `first` up to `last` at `end`."""
    return min(last, first + int((last - first) * ramp(progress, 0.0, end)))


def _sample(denoiser: SequenceDenoiser, noise: Tensor, edit: EditConfig, sigmas: Sequence[float] | None) -> Tensor:
    """Return x0 [B, F, C, h, w] from noise [S, B, F, C, h, w] by the samplers of inference."""
    at_one_time = _at_one_time(denoiser)
    if edit.sampler == "renoise":
        return renoise(at_one_time, iter(noise), edit.timesteps, sigmas, device=noise.device)
    levels = shifted_sigmas(edit.num_steps, edit.shift) if sigmas is None else sigmas
    return euler(at_one_time, iter(noise), levels, device=noise.device)


def _at_one_time(denoiser: SequenceDenoiser) -> Denoiser:
    """Adapt a denoiser to samplers, which pass one time for all frames, as a number."""
    return lambda noisy, time: denoiser(noisy, torch.full(noisy.shape[:2], float(time), device=noisy.device)).float()
