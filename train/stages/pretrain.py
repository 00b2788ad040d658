"""Stage 1, identity-preserving pretraining: follow one instruction and keep the rest.

The model learns pairs, a source and an edit of it. Where the data has several edits of one source (a *star*), they
share one reading of it, so that three quarters of the work of a star of three is supervised, of a pair only half:
each edit sees the source and itself. Chains are taken apart into pairs. Sometimes the instruction is null and the
target is the source itself (identity mapping), sometimes only the instruction is null (for guidance).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig, MemoryPolicy
from anchoredit_model.memory.visibility import sequence_views

from ..data.source import Batch
from ..networks import Network
from .forcing import sequence_denoiser
from .losses import add_noise, flow_matching_loss
from .stage import Draws, Stage, StageParts
from .timesteps import sample_times, sigma_of

_CHANGED = 0.15  # mean absolute difference of normalised latents that counts as a change
_LEAST_AREA = 0.01  # share of the image that an edit at least counts as: bounds the weight of one position


class Pretrain(Stage):
    name = "pretrain"
    layouts = ("star", "chain")

    @property
    def edit(self) -> EditConfig:
        return self.config.undistilled()

    def build(self, parts: StageParts) -> dict[str, Network]:
        settings = self.settings
        return {"model": parts.builder.trained(parts.start, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, draws: Draws, progress: float) -> Tensor:
        settings = self.settings
        batch = batch if batch.star else pairs(batch)
        source, target = batch.latents[:, :1], batch.latents[:, 1:]
        shape = target.shape[:2]
        same = draws.often(shape, settings.identity)
        target = torch.where(over_latents(same), source, target)
        text = without(batch.text, same | draws.often(shape, settings.dropout))
        times = sample_times(shape, settings.times, draws.own)
        sigma, noise = sigma_of(times), draws.noise(target.shape)
        views = sequence_views(batch.latents.shape[1], MemoryPolicy(1, 0))
        predict = sequence_denoiser(self.main.forward, source, text, views, self.stride)
        flow = predict(add_noise(target, noise, sigma), times)
        return flow_matching_loss(
            flow, target, noise, spatial_weight=edit_region_weight(target, source, settings.edit_region_weight)
        )


def pairs(batch: Batch) -> Batch:
    """Every turn of chains [B, T + 1] as a pair of its own [B * T, 2], the image before it being the source."""
    latents = torch.stack([batch.latents[:, :-1], batch.latents[:, 1:]], dim=2).flatten(0, 1)
    null = batch.text[:, :1].expand(-1, batch.text.shape[1] - 1, -1, -1)
    text = torch.stack([null, batch.text[:, 1:]], dim=2).flatten(0, 1)
    return Batch(latents, text, star=True)


def without(text: Tensor, dropped: Tensor) -> Tensor:
    """Texts [B, T + 1, rows, E] with the null instruction, which is the first, in the turns `dropped` [B, T]."""
    turns = torch.where(dropped[:, :, None, None], text[:, :1], text[:, 1:])
    return torch.cat([text[:, :1], turns], dim=1)


def edit_region_weight(target: Tensor, source: Tensor, extra: float) -> Tensor | None:
    """Weight [..., 1, h, w] of every latent position: 1, and more where the edit changes it; None without `extra`.

    What an edit changes counts `extra` times as much as the whole image, however small it is: a smile learns as
    fast as a sky.
    """
    if not extra:
        return None
    changed = ((target - source).abs().mean(dim=-3, keepdim=True) > _CHANGED).float()
    area = changed.mean(dim=(-2, -1), keepdim=True)
    return 1 + extra * changed / area.clamp(min=_LEAST_AREA)


def over_latents(mask: Tensor) -> Tensor:
    """[B, T] -> [B, T, 1, 1, 1]."""
    return mask[..., None, None, None]
