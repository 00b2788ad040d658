"""Stage 1, identity-preserving pretraining: follow one instruction and preserve the rest.

The model learns from pairs of a source and an edit of it. Several edits of one source (a *star*) are one sequence in
which each edit attends to the source and to itself, so that three quarters of the tokens of a star of three are
supervised, but only half of those of a pair. Chains are split into pairs. In some samples the instruction is null and
the target is the source itself (identity mapping), in others only the instruction is null (for guidance).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig, MemoryPolicy
from anchoredit_model.memory.visibility import sequence_views
from anchoredit_model.networks.full_sequence import sequence_denoiser

from ..config import PretrainConfig
from ..data.source import Batch
from ..networks import TrainableNetwork
from .losses import add_noise, flow_matching_loss
from .stage import RandomStreams, Stage, StageParts
from .timesteps import sample_times, sigma_of

_CHANGED = 0.15  # mean absolute difference of normalised latents that counts as a change
_MIN_AREA = 0.01  # share of the image that every edit counts as at least: bounds the weight of one position


class PretrainStage(Stage[PretrainConfig]):
    """Train on single edits of a source."""

    name = "pretrain"
    layouts = ("star", "chain")

    @property
    def edit(self) -> EditConfig:
        return self.config.undistilled()

    def build(self, parts: StageParts) -> dict[str, TrainableNetwork]:
        settings = self.settings
        return {"model": parts.builder.trainable(parts.init, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        settings = self.settings
        batch = batch if batch.star else as_pairs(batch)
        source, target = batch.latents[:, :1], batch.latents[:, 1:]
        shape = target.shape[:2]
        identity = rng.mask(shape, settings.identity_prob)
        target = torch.where(identity[..., None, None, None], source, target)
        text = drop_instructions(batch.text, identity | rng.mask(shape, settings.instruction_dropout))
        times = sample_times(shape, settings.times, rng.local)
        sigma, noise = sigma_of(times), rng.noise(target.shape)
        views = sequence_views(batch.latents.shape[1], MemoryPolicy(1, 0))
        denoiser = sequence_denoiser(self.main.forward, source, text, views, self.stride)
        flow = denoiser(add_noise(target, noise, sigma), times)
        return flow_matching_loss(
            flow, target, noise, spatial_weight=edit_region_weight(target, source, settings.edit_region_weight)
        )


def as_pairs(batch: Batch) -> Batch:
    """Split chains [B, T + 1] into pairs [B * T, 2] of an image and its edit."""
    latents = torch.stack([batch.latents[:, :-1], batch.latents[:, 1:]], dim=2).flatten(0, 1)
    null = batch.text[:, :1].expand(-1, batch.text.shape[1] - 1, -1, -1)
    text = torch.stack([null, batch.text[:, 1:]], dim=2).flatten(0, 1)
    return Batch(latents, text, star=True)


def drop_instructions(text: Tensor, dropped: Tensor) -> Tensor:
    """Return texts [B, T + 1, rows, E] with the null instruction, which is the first, in the turns `dropped` [B, T]."""
    turns = torch.where(dropped[:, :, None, None], text[:, :1], text[:, 1:])
    return torch.cat([text[:, :1], turns], dim=1)


def edit_region_weight(target: Tensor, source: Tensor, extra: float) -> Tensor | None:
    """Return the weight [..., 1, h, w] of every latent position: 1, and more where the edit changes it.

    The changed region weighs `extra` times as much as the whole image, whatever its size, so that a smile is learned as
    fast as a sky. None if `extra` is 0.
    """
    if not extra:
        return None
    changed = ((target - source).abs().mean(dim=-3, keepdim=True) > _CHANGED).float()
    area = changed.mean(dim=(-2, -1), keepdim=True)
    return 1 + extra * changed / area.clamp(min=_MIN_AREA)
