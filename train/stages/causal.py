"""Stage 2, causal autoregressive forcing: every turn of a session behind a history as at inference.

The history is degraded or replaced by the model's own output, more often as training proceeds, while the target is
always the true edit. Sessions grow from a few turns to all. See `forcing`, `degrade` and `rollout`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig
from anchoredit_model.memory.visibility import bidirectional_views
from anchoredit_model.networks.full_sequence import SequenceDenoiser, sequence_denoiser

from ..config import CausalConfig
from ..data.source import Batch
from ..networks import TrainableNetwork
from .degrade import degrade
from .forcing import turns_denoiser
from .losses import add_noise, flow_matching_loss, frame_weights, regression_loss, turn_weights
from .pretrain import drop_instructions, edit_region_weight
from .rollout import (
    last_step_x0,
    one_pass,
    replace_frames,
    rollout_probability,
    sample_replaced,
    self_rollout_history,
    turns_at,
)
from .stage import RandomStreams, Stage, StageParts
from .timesteps import NOISE, forcing_times, sample_times, sigma_of


class CausalStage(Stage[CausalConfig]):
    """Train on whole sessions."""

    name = "causal"

    @property
    def edit(self) -> EditConfig:
        return self.config.undistilled()

    def build(self, parts: StageParts) -> dict[str, TrainableNetwork]:
        settings = self.settings
        return {"model": parts.builder.trainable(parts.init, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        settings = self.settings
        longest = min(settings.turns, batch.latents.shape[1] - 1)
        turns = turns_at(progress, min(settings.first_turns, longest), longest, settings.turns_end)
        batch = batch.first(turns)
        dropped = rng.mask((len(batch.latents), turns), settings.instruction_dropout)
        batch = replace(batch, text=drop_instructions(batch.text, dropped))
        if settings.forcing == "bidirectional":
            return self._bidirectional(batch.first(rng.integer(1, turns + 1)), rng)
        form = self._rollout_form(turns, rng, progress)
        return (self._teacher if settings.forcing == "teacher" else self._diffusion)(batch, rng, progress, form)

    def _teacher(self, batch: Batch, rng: RandomStreams, progress: float, form: str) -> Tensor:
        """Return the loss of teacher forcing: all noisy turns 1..T at once, turn i behind the history 0..i-1."""
        settings, latents = self.settings, batch.latents
        target, turns = latents[:, 1:], latents.shape[1] - 1
        history = latents[:, :-1]
        if form != "none":
            replaced = self._replaced(batch, rng, progress)
            if form == "cached":
                history = self._roll_out(batch, replaced, rng)
            else:
                history = replace_frames(latents, self._one_pass(batch, rng), replaced)[:, :-1]
        history = self._degraded(history, rng)
        denoiser = turns_denoiser(self.main.forward, history, batch.text, slots=self.slots, stride=self.stride)
        weights = turn_weights(turns, settings.turn_weight)[None]
        spatial_weight = edit_region_weight(target, latents[:, :-1], settings.edit_region_weight)
        if settings.on_policy_prob and rng.bernoulli(settings.on_policy_prob):
            return self._on_policy_loss(denoiser, target, weights, spatial_weight, rng)
        times = sample_times(target.shape[:2], settings.times, rng.local)
        sigma, noise = sigma_of(times), rng.noise(target.shape)
        flow = denoiser(add_noise(target, noise, sigma), times)
        return flow_matching_loss(flow, target, noise, weights, spatial_weight)

    def _on_policy_loss(
        self,
        denoiser: SequenceDenoiser,
        target: Tensor,
        weights: Tensor,
        spatial_weight: Tensor | None,
        rng: RandomStreams,
    ) -> Tensor:
        """Return the loss of x0 at a random step of the sampler, from the noisy input that its own steps have made.

        It is divided by the noise level, so that late steps learn as well.
        """
        times = self.settings.times
        step = rng.categorical(times.weights)
        x0 = last_step_x0(denoiser, rng.noise((step + 1, *target.shape)), step, times.sampler_timesteps)
        return regression_loss(x0, target, weights, spatial_weight) / (times.sampler_timesteps[step] / NOISE)

    def _diffusion(self, batch: Batch, rng: RandomStreams, progress: float, form: str) -> Tensor:
        """Return the loss of diffusion forcing: one sequence of frames 0..T, each at its own noise level."""
        settings, latents = self.settings, batch.latents
        count, frames = latents.shape[:2]
        times = forcing_times(count, frames, settings.times, rng.local, settings.clean_history_prob)
        sigma, noise = sigma_of(times), rng.noise(latents.shape)
        denoiser = sequence_denoiser(self.main.forward, latents[:, :0], batch.text, stride=self.stride)
        shown, replaced = latents, None
        if form != "none":
            replaced = self._replaced(batch, rng, progress)
            if form == "cached":
                shown = torch.cat([self._roll_out(batch, replaced, rng), latents[:, -1:]], dim=1)
            else:
                bare = sequence_denoiser(self.main.module, latents[:, :0], batch.text, stride=self.stride)
                shown = replace_frames(latents, one_pass(bare, latents, noise, times, sigma), replaced)
        shown = self._degraded(shown, rng)
        flow = denoiser(add_noise(shown, noise, sigma), times)
        weights = frame_weights(latents.shape[1] - 1, settings.turn_weight, replaced, times)
        before = torch.cat([latents[:, :1], latents[:, :-1]], dim=1)
        spatial_weight = edit_region_weight(latents, before, settings.edit_region_weight)
        return flow_matching_loss(flow, latents, noise, weights, spatial_weight)

    def _bidirectional(self, batch: Batch, rng: RandomStreams) -> Tensor:
        """Return the loss of the last turn alone: all frames attend to each other, so no later turn may be there."""
        settings = self.settings
        history, target = batch.latents[:, :-1], batch.latents[:, -1:]
        times = sample_times(target.shape[:2], settings.times, rng.local)
        sigma, noise = sigma_of(times), rng.noise(target.shape)
        views = bidirectional_views(batch.latents.shape[1])
        degraded = self._degraded(history, rng)
        denoiser = sequence_denoiser(self.main.forward, degraded, batch.text, views, self.stride)
        flow = denoiser(add_noise(target, noise, sigma), times)
        spatial_weight = edit_region_weight(target, history[:, -1:], settings.edit_region_weight)
        return flow_matching_loss(flow, target, noise, spatial_weight=spatial_weight)

    def _rollout_form(self, turns: int, rng: RandomStreams, progress: float) -> str:
        """Sample the form of self-rollout in this step, the same in all processes."""
        due = rng.bernoulli(self.settings.rollout_share)
        return self.settings.rollout if due and turns > 1 and self._probability(progress) > 0 else "none"

    def _probability(self, progress: float) -> float:
        settings = self.settings
        return rollout_probability(progress, settings.rollout_start, settings.rollout_end, settings.rollout_prob)

    def _replaced(self, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        """Sample which frames [B, T + 1] the model's own output replaces."""
        count, frames = batch.latents.shape[:2]
        return sample_replaced(count, frames, self._probability(progress), rng.local)

    def _roll_out(self, batch: Batch, replaced: Tensor, rng: RandomStreams) -> Tensor:
        """Return the history [B, T, C, h, w] with these frames sampled turn by turn from the K/V cache."""
        model, edit = self.main.module, replace(self.edit, num_steps=self.settings.rollout_steps)
        return self_rollout_history(
            model, batch.latents, batch.text, replaced, edit, rng.noise, slots=self.slots, stride=self.stride
        )

    def _one_pass(self, batch: Batch, rng: RandomStreams) -> Tensor:
        """Predict frames [B, T + 1, C, h, w] from the noisy truth in one pass; the anchor stays."""
        target = batch.latents[:, 1:]
        times = sample_times(target.shape[:2], self.settings.times, rng.local)
        denoiser = turns_denoiser(
            self.main.module, batch.latents[:, :-1], batch.text, slots=self.slots, stride=self.stride
        )
        predicted = one_pass(denoiser, target, rng.noise(target.shape), times, sigma_of(times))
        return torch.cat([batch.latents[:, :1], predicted], dim=1)

    def _degraded(self, history: Tensor, rng: RandomStreams) -> Tensor:
        return degrade(history, self.settings.degradations, rng.local, self.vae) if self.settings.degrade else history
