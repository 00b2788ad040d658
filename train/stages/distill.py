"""Stage 3, distillation to a few steps without guidance: consistency first, then distribution matching.

`ConsistencyStage` makes the student's x0 agree along the guided teacher's trajectory, behind true histories or its own.
`DistributionMatchingStage` lets the generator sample whole sessions and moves its images towards what the teacher finds
likely, by the difference of two scores: the teacher's, and that of a fake score trained on the generator's samples. The
formulas are in `losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchoredit_model.config import EditConfig
from anchoredit_model.networks.full_sequence import SequenceDenoiser, sequence_denoiser
from anchoredit_model.samplers import guided

from ..config import ConsistencyConfig, DistributionMatchingConfig
from ..data.source import Batch
from ..networks import Network, TrainableNetwork
from ..weight_init import WeightInit
from .forcing import forcing_views, turns_denoiser
from .losses import consistency_loss, critic_loss, generator_loss
from .pretrain import edit_region_weight
from .rollout import SessionCache, last_step_x0, rollout, sample_replaced, self_rollout_history
from .stage import RandomStreams, Stage, StageParts
from .timesteps import consistency_times, sample_times, sigma_of


class ConsistencyStage(Stage[ConsistencyConfig]):
    """Train on all turns of a session at once, each behind its history.

    The history may be the student's own, as in the second stage, so that it keeps learning to correct its own errors.
    """

    name = "distill.consistency"

    @property
    def edit(self) -> EditConfig:
        return self.config.distilled()

    def build(self, parts: StageParts) -> dict[str, TrainableNetwork]:
        self.teacher, _ = _frozen_teacher(parts)
        settings = self.settings
        return {"student": parts.builder.trainable(parts.init, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        settings = self.settings
        batch = batch.first(settings.turns)
        before, target, text = batch.latents[:, :-1], batch.latents[:, 1:], batch.text
        due = rng.bernoulli(settings.rollout_share) and target.shape[1] > 1
        history = self._self_rollout(batch, rng) if due else before

        def turns(model: nn.Module) -> SequenceDenoiser:
            return turns_denoiser(model, history, text, slots=self.slots, stride=self.stride)

        null = text[:, :1].expand_as(text[:, 1:])
        views = forcing_views(history.shape[1], slots=self.slots)
        unconditional = sequence_denoiser(
            self.teacher.module, history, torch.cat([text[:, :-1], null], dim=1), views, self.stride
        )
        times = consistency_times(target.shape[:2], rng.local, settings.grid, settings.shift)
        return consistency_loss(
            turns(self.main.forward),
            turns(self.main.averaged.module),
            guided(turns(self.teacher.module), unconditional, settings.cfg),
            target,
            rng.noise(target.shape),
            times,
            (sigma_of(times[0]), sigma_of(times[1])),
            edit_region_weight(target, before, settings.edit_region_weight),
        )

    def _self_rollout(self, batch: Batch, rng: RandomStreams) -> Tensor:
        """Return the history [B, T, C, h, w] with some frames sampled by the student."""
        model = self.main.module
        count, frames = batch.latents.shape[:2]
        replaced = sample_replaced(count, frames, self.settings.rollout_prob, rng.local)
        return self_rollout_history(
            model, batch.latents, batch.text, replaced, self.edit, rng.noise, slots=self.slots, stride=self.stride
        )


class DistributionMatchingStage(Stage[DistributionMatchingConfig]):
    """Train on one turn of a session at a time, behind the generator's own images of the turns before."""

    name = "distill.matching"

    @property
    def edit(self) -> EditConfig:
        return self.config.distilled()

    def build(self, parts: StageParts) -> dict[str, TrainableNetwork]:
        builder, settings = parts.builder, self.settings
        self.teacher, teacher_init = _frozen_teacher(parts)
        return {
            "generator": builder.trainable(parts.init, settings.optimiser, settings.ema),
            "fake": builder.trainable(teacher_init, settings.critic),
        }

    def learners(self, step: int) -> tuple[str, ...]:
        """Return the fake score in every step, so that it keeps up with the generator, which learns less often."""
        return ("generator", "fake") if step % self.settings.generator_every == 0 else ("fake",)

    def loss(self, learner: str, batch: Batch, rng: RandomStreams, progress: float) -> Tensor:
        with torch.compiler.set_stance("force_eager"):  # histories of every length: too many shapes to compile
            return (self._generator if learner == "generator" else self._fake)(batch, rng)

    def _generator(self, batch: Batch, rng: RandomStreams) -> Tensor:
        turn, text = self._turn(batch, rng), batch.text
        cache, history = self._sessions(batch, turn - 1, rng)
        cache.encode_frame(history[:, -1], text[:, turn - 1 : turn])
        step = rng.integer(0, len(self.edit.timesteps))
        noise = rng.noise((step + 1, *history[:, :1].shape))
        x0 = last_step_x0(cache.denoiser(text[:, turn : turn + 1]), noise, step, self.edit.timesteps)

        text = text[:, : turn + 1]
        null = torch.cat([text[:, :-1], text[:, :1]], dim=1)
        real = guided(
            self._score(self.teacher.module, history, text),
            self._score(self.teacher.module, history, null),
            self.settings.cfg,
        )
        fake = self._score(self.networks["fake"].module, history, text)
        times = sample_times(x0.shape[:2], self.settings.times, rng.local)
        return generator_loss(x0, real, fake, rng.noise(x0.shape), times, sigma_of(times))

    def _fake(self, batch: Batch, rng: RandomStreams) -> Tensor:
        turn = self._turn(batch, rng)
        _, sampled = self._sessions(batch, turn, rng)
        history, x0 = sampled[:, :-1], sampled[:, -1:]
        score = self._score(self.networks["fake"].forward, history, batch.text[:, : turn + 1])
        times = sample_times(x0.shape[:2], self.settings.times, rng.local)
        return critic_loss(score, x0, rng.noise(x0.shape), times, sigma_of(times))

    def _turn(self, batch: Batch, rng: RandomStreams) -> int:
        """Sample the turn that learns, the same in all processes."""
        return rng.integer(1, 1 + min(self.settings.turns, batch.latents.shape[1] - 1))

    def _sessions(self, batch: Batch, turns: int, rng: RandomStreams) -> tuple[SessionCache, Tensor]:
        """Sample frames 0..turns [B, turns + 1, C, h, w] by the generator; the cache has K/V of all but the last."""
        generator = self.networks["generator"]
        cache = SessionCache(generator.module, slots=self.slots, stride=self.stride, forward=generator.forward)
        noise = rng.noise((turns, len(self.edit.timesteps), *batch.latents[:, 0].shape))
        return cache, rollout(cache, batch.latents, batch.text, noise, self.edit)

    def _score(self, model: nn.Module, history: Tensor, text: Tensor) -> SequenceDenoiser:
        """Return the score of one frame behind a clean history."""
        return sequence_denoiser(model, history, text, stride=self.stride)


def _frozen_teacher(parts: StageParts) -> tuple[Network, WeightInit]:
    if parts.teacher is None:
        raise ValueError("distillation needs a teacher")
    return parts.builder.frozen(parts.teacher), parts.teacher
