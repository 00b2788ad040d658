"""Self-rollout: histories that the model makes itself, so that it learns to edit what it will meet.

`rollout` is the true one: a batch of sessions sampled turn by turn from remembered keys and values, as
inference does it and with the same samplers, without a gradient. `one_pass` is the cheap form: one prediction of
x0 from the noisy truth. Either takes the truth's place in the frames that `sample_replaced` draws, and those
get no loss as frames of a noisy sequence (`losses.frame_weights`). How much of it there is grows over the
training, by the functions at the end. Exposure bias and its cure: https://arxiv.org/abs/1506.03099,
https://arxiv.org/abs/2506.08009.

Legend: B batch, T turns, S draws of noise per turn, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from anchoredit_model.config import EditConfig, MemoryPolicy
from anchoredit_model.memory.frame_kv import FrameKV
from anchoredit_model.memory.visibility import FrameView, frame_view, sequence_views
from anchoredit_model.networks.transformer import CausalWanTransformer, TextContext
from anchoredit_model.samplers import Denoiser, euler, guided, renoise, shifted_sigmas

from .losses import SequenceDenoiser, add_noise, x0_of


class SessionCache:
    """Keys and values of a batch of sessions of one length, frame by frame, streaming as in `KVCacheManager`.

    Frames that no later turn can see are forgotten. Reading keeps no gradient; what is predicted from it does.
    `model` is the bare module; `forward` is what predictions call, if that is wrapped (DDP).
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
        self._blocks: dict[int, FrameKV] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        return sum(block.nbytes for block in self._blocks.values())

    @torch.no_grad()
    def encode_frame(self, latent: Tensor, text: Tensor | TextContext) -> None:
        """Remembers one more clean frame [B, C, h, w], whose text is [B, 1, rows, E]."""
        view, blocks = self._visible()
        block, _ = self.model.encode_frame(latent[:, :, None], text, view, self.stride, blocks)
        self._blocks[self.frames] = block
        self.frames += 1
        seen = self._view().frames
        self._blocks = {frame: block for frame, block in self._blocks.items() if frame in seen}

    def denoiser(self, text: Tensor | TextContext) -> SequenceDenoiser:
        """Return the flow of the next frame [B, 1, C, h, w] under text [B, 1, rows, E], from what is remembered now."""
        view, blocks = self._visible()

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            flow = self.forward(noisy.transpose(1, 2), times, text, (view,), self.stride, blocks)
            return flow.transpose(1, 2)

        return predict

    def _view(self) -> FrameView:
        if self.policy is None:
            return sequence_views(self.frames + 1, None, self.slots)[-1]
        return frame_view(self.frames, self.policy, self.slots)

    def _visible(self) -> tuple[FrameView, tuple[FrameKV, ...]]:
        view = self._view()
        return view, tuple(self._blocks[frame] for frame in view.frames)


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
    """Sessions [B, T + 1, C, h, w] float32, frame 0 being the anchor `latents[:, 0]`, the rest sampled in turn.

    cache     fresh; afterwards it remembers all frames but the last
    latents   [B, 1 or more, C, h, w], the truth
    text      [B, T + 1 or more, rows, E], see `forcing.frame_texts`
    noise     [T, S, B, C, h, w] says how many turns there are: the start and every re-noising of
              `edit.sampler`, S = len(edit.timesteps) for "renoise", 1 for "euler"
    edit      the sampler; with `edit.cfg` the second branch is frame 0's text
    replaced  [B, T + 1] bool: frames that are False stay the truth, and later ones see that (default: all True)
    sigmas    noise levels in place of steps / 1000
    """
    frames = [latents[:, 0].float()]
    for turn, draws in enumerate(noise, start=1):
        cache.encode_frame(frames[-1], cache.model.embed_text(text[:, turn - 1 : turn]))
        predict = cache.denoiser(cache.model.embed_text(text[:, turn : turn + 1]))
        if edit.cfg != 1:
            predict = guided(predict, cache.denoiser(cache.model.embed_text(text[:, :1])), edit.cfg)
        x0 = _sample(predict, draws[:, :, None], edit, sigmas)[:, 0]
        if replaced is not None:
            x0 = torch.where(replaced[:, turn, None, None, None], x0, latents[:, turn].float())
        frames.append(x0)
    return torch.stack(frames, dim=1)


def own_history(
    model: CausalWanTransformer,
    latents: Tensor,
    text: Tensor,
    replaced: Tensor,
    edit: EditConfig,
    draw: Callable[[Sequence[int]], Tensor],
    *,
    slots: str,
    stride: int,
) -> Tensor:
    """Return the history [B, T, C, h, w] of sessions [B, T + 1, ...], its `replaced` frames [B, T + 1] the model's own.

    As inference makes them, turn by turn from the cache, but without guidance; `draw` makes noise of a shape.
    """
    turns = latents.shape[1] - 2  # the last frame is no history
    draws = len(edit.timesteps) if edit.sampler == "renoise" else 1
    noise = draw((turns, draws, *latents[:, 0].shape))
    cache = SessionCache(model, slots=slots, stride=stride)
    return rollout(cache, latents, text, noise, replace(edit, cfg=1.0), replaced)


def last_step_x0(
    predict: SequenceDenoiser, noise: Tensor, step: int, times: Sequence[float], sigmas: Sequence[float] | None = None
) -> Tensor:
    """Return the few-step sampler stopped at step 0, 1, ....

    X0 [B, F, C, h, w] of that step, with the gradient of it alone.

    noise [step + 1 or more, B, F, C, h, w]: the start and the re-noisings, as the sampler would draw them. This
    is what distribution matching scores (backward simulation, https://arxiv.org/abs/2405.14867, 4.5).
    """
    levels = [time / 1000 for time in times] if sigmas is None else list(sigmas)
    sigma = torch.full(noise.shape[1:3], levels[step], device=noise.device)
    noisy = noise[0]
    if step:
        with torch.no_grad():
            x0 = renoise(_at_one_time(predict), iter(noise), times[:step], levels[:step], device=noise.device)
        noisy = add_noise(x0, noise[step], sigma)
    return x0_of(noisy, predict(noisy, torch.full_like(sigma, times[step])), sigma)


@torch.no_grad()
def one_pass(predict: SequenceDenoiser, clean: Tensor, noise: Tensor, times: Tensor, sigma: Tensor) -> Tensor:
    """Return the published, cheap stand-in for a rollout: x0 [B, F, C, h, w] by one prediction from the noisy truth."""
    noisy = add_noise(clean, noise, sigma)
    return x0_of(noisy, predict(noisy, times), sigma)


def replace_frames(latents: Tensor, made: Tensor, replaced: Tensor) -> Tensor:
    """Return latents [B, F, C, h, w] with the frames in `replaced` [B, F] taken from `made`."""
    return torch.where(replaced[..., None, None, None], made, latents)


def sample_replaced(batch: int, frames: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which frames [B, frames] the model's own output replaces: never the anchor, nor the last, which nobody sees."""
    replaced = torch.rand(batch, frames, generator=generator, device=generator.device) < probability
    replaced[:, 0] = replaced[:, -1] = False
    return replaced


def ramp(progress: float, start: float, end: float) -> float:
    """0 until `start`, 1 from `end` on, straight between; all are shares of the training."""
    return float(progress >= end) if end <= start else min(1.0, max(0.0, (progress - start) / (end - start)))


def rollout_probability(progress: float, start: float, end: float, peak: float) -> float:
    """Probability of self-rollout after a share `progress` of the training: none until `start`, `peak` from `end`."""
    return peak * ramp(progress, start, end)


def turns_now(progress: float, first: int, last: int, end: float) -> int:
    """Return turns per session after a share `progress` of the training.

    From `first`, each count equally long, to `last`.

    `last` is reached at `end`.
    """
    return min(last, first + int((last - first) * ramp(progress, 0.0, end)))


def _sample(predict: SequenceDenoiser, noise: Tensor, edit: EditConfig, sigmas: Sequence[float] | None) -> Tensor:
    """x0 [B, F, C, h, w] from noise [S, B, F, C, h, w] by inference's samplers, which mind no leading dimensions."""
    flow = _at_one_time(predict)
    if edit.sampler == "renoise":
        return renoise(flow, iter(noise), edit.timesteps, sigmas, device=noise.device)
    levels = shifted_sigmas(edit.num_steps, edit.shift) if sigmas is None else sigmas
    return euler(flow, iter(noise), levels, device=noise.device)


def _at_one_time(predict: SequenceDenoiser) -> Denoiser:
    """`predict` for samplers, which give all frames the same time, as a number."""
    return lambda noisy, time: predict(noisy, torch.full(noisy.shape[:2], float(time), device=noisy.device)).float()
