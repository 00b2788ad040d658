"""Stage 2, causal autoregressive forcing: every turn of a session behind a history as inference will have it.

The history is damaged, or made by the model itself, more of it as training goes on, while the target always is the
true edit. Sessions grow from a few turns to all. The pieces are in `forcing`, `degrade` and `rollout`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from anchoredit_model.config import EditConfig
from anchoredit_model.memory.visibility import bidirectional_views

from ..data.source import Batch
from ..networks import Network
from .degrade import degrade
from .forcing import sequence_denoiser, turns_denoiser
from .losses import SequenceDenoiser, add_noise, flow_matching_loss, frame_weights, regression_loss, turn_weights
from .pretrain import edit_region_weight, without
from .rollout import (
    last_step_x0,
    one_pass,
    own_history,
    replace_frames,
    rollout_probability,
    sample_replaced,
    turns_now,
)
from .stage import Draws, Stage, StageParts
from .timesteps import NOISE, forcing_times, sample_times, sigma_of


class Causal(Stage):
    name = "causal"

    @property
    def edit(self) -> EditConfig:
        return self.config.undistilled()

    def build(self, parts: StageParts) -> dict[str, Network]:
        settings = self.settings
        return {"model": parts.builder.trained(parts.start, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, draws: Draws, progress: float) -> Tensor:
        settings = self.settings
        most = min(settings.turns, batch.latents.shape[1] - 1)
        turns = turns_now(progress, min(settings.first_turns, most), most, settings.turns_end)
        batch = batch.first(turns)
        shape = (len(batch.latents), turns)
        batch = replace(batch, text=without(batch.text, draws.often(shape, settings.dropout)))
        if settings.forcing == "bidirectional":
            return self._bidirectional(batch.first(draws.number(1, turns + 1)), draws)
        form = self._rollout_form(turns, draws, progress)
        return (self._teacher if settings.forcing == "teacher" else self._diffusion)(batch, draws, progress, form)

    def _teacher(self, batch: Batch, draws: Draws, progress: float, form: str) -> Tensor:
        """All noisy turns 1..T at once, turn i behind history 0..i-1."""
        settings, latents = self.settings, batch.latents
        target, turns = latents[:, 1:], latents.shape[1] - 1
        history = latents[:, :-1]
        if form != "none":
            replaced = self._replaced(batch, draws, progress)
            if form == "cached":
                history = self._roll_out(batch, replaced, draws)
            else:
                history = replace_frames(latents, self._one_pass(batch, draws), replaced)[:, :-1]
        history = self._damaged(history, draws)
        predict = turns_denoiser(self.main.forward, history, batch.text, slots=self.slots, stride=self.stride)
        weights = turn_weights(turns, settings.turn_weight)[None]
        spatial_weight = edit_region_weight(target, latents[:, :-1], settings.edit_region_weight)
        if settings.on_policy_prob and draws.chance(settings.on_policy_prob):
            return self._after_own_steps(predict, target, weights, spatial_weight, draws)
        times = sample_times(target.shape[:2], settings.times, draws.own)
        sigma, noise = sigma_of(times), draws.noise(target.shape)
        flow = predict(add_noise(target, noise, sigma), times)
        return flow_matching_loss(flow, target, noise, weights, spatial_weight)

    def _after_own_steps(
        self, predict: SequenceDenoiser, target: Tensor, weights: Tensor, spatial_weight: Tensor | None, draws: Draws
    ) -> Tensor:
        """Return the sampler stopped at one of its steps.

        Divided by its noise level, so that late steps learn as well.
        """
        times = self.settings.times
        step = draws.which(times.weights)
        x0 = last_step_x0(predict, draws.noise((step + 1, *target.shape)), step, times.sampler_timesteps)
        return regression_loss(x0, target, weights, spatial_weight) / (times.sampler_timesteps[step] / NOISE)

    def _diffusion(self, batch: Batch, draws: Draws, progress: float, form: str) -> Tensor:
        """One sequence of frames 0..T, each noisy in its own way, or one behind a history at t = 0."""
        settings, latents = self.settings, batch.latents
        times = forcing_times(*latents.shape[:2], settings.times, draws.own, settings.clean_history)
        sigma, noise = sigma_of(times), draws.noise(latents.shape)
        predict = sequence_denoiser(self.main.forward, latents[:, :0], batch.text, stride=self.stride)
        shown, replaced = latents, None
        if form != "none":
            replaced = self._replaced(batch, draws, progress)
            if form == "cached":
                shown = torch.cat([self._roll_out(batch, replaced, draws), latents[:, -1:]], dim=1)
            else:
                bare = sequence_denoiser(self.main.module, latents[:, :0], batch.text, stride=self.stride)
                shown = replace_frames(latents, one_pass(bare, latents, noise, times, sigma), replaced)
        shown = self._damaged(shown, draws)
        flow = predict(add_noise(shown, noise, sigma), times)
        weights = frame_weights(latents.shape[1] - 1, settings.turn_weight, replaced, times)
        before = torch.cat([latents[:, :1], latents[:, :-1]], dim=1)
        spatial_weight = edit_region_weight(latents, before, settings.edit_region_weight)
        return flow_matching_loss(flow, latents, noise, weights, spatial_weight)

    def _bidirectional(self, batch: Batch, draws: Draws) -> Tensor:
        """Return the last turn alone, as all frames see each other.

        It must not be seen by turns that are still to be made.
        """
        settings = self.settings
        history, target = batch.latents[:, :-1], batch.latents[:, -1:]
        times = sample_times(target.shape[:2], settings.times, draws.own)
        sigma, noise = sigma_of(times), draws.noise(target.shape)
        views = bidirectional_views(batch.latents.shape[1])
        damaged = self._damaged(history, draws)
        predict = sequence_denoiser(self.main.forward, damaged, batch.text, views, self.stride)
        flow = predict(add_noise(target, noise, sigma), times)
        spatial_weight = edit_region_weight(target, history[:, -1:], settings.edit_region_weight)
        return flow_matching_loss(flow, target, noise, spatial_weight=spatial_weight)

    def _rollout_form(self, turns: int, draws: Draws, progress: float) -> str:
        """Return the form of self-rollout in this step, which all processes agree on."""
        due = draws.chance(self.settings.rollout_share)
        return self.settings.rollout if due and turns > 1 and self._probability(progress) > 0 else "none"

    def _probability(self, progress: float) -> float:
        settings = self.settings
        return rollout_probability(progress, settings.rollout_start, settings.rollout_end, settings.rollout_peak)

    def _replaced(self, batch: Batch, draws: Draws, progress: float) -> Tensor:
        """Which frames [B, T + 1] the model's own output replaces."""
        return sample_replaced(*batch.latents.shape[:2], self._probability(progress), draws.own)

    def _roll_out(self, batch: Batch, replaced: Tensor, draws: Draws) -> Tensor:
        """Return the history [B, T, C, h, w] with those frames made turn by turn from the cache."""
        model, edit = self.main.module, replace(self.edit, num_steps=self.settings.rollout_steps)
        return own_history(
            model, batch.latents, batch.text, replaced, edit, draws.noise, slots=self.slots, stride=self.stride
        )

    def _one_pass(self, batch: Batch, draws: Draws) -> Tensor:
        """Frames [B, T + 1, C, h, w] as one prediction from the noisy truth makes them; the anchor as it is."""
        target = batch.latents[:, 1:]
        times = sample_times(target.shape[:2], self.settings.times, draws.own)
        predict = turns_denoiser(
            self.main.module, batch.latents[:, :-1], batch.text, slots=self.slots, stride=self.stride
        )
        made = one_pass(predict, target, draws.noise(target.shape), times, sigma_of(times))
        return torch.cat([batch.latents[:, :1], made], dim=1)

    def _damaged(self, history: Tensor, draws: Draws) -> Tensor:
        return degrade(history, self.settings.degradations, draws.own, self.vae) if self.settings.degrade else history
