"""Stage 3, distillation to a few steps without guidance: consistency first, then distribution matching.

`Consistency` pulls the student's x0 together along the guided teacher's path, behind true histories or its own.
`Matching` lets the generator make whole sessions and moves its images towards what the teacher finds likely, by the
difference of two scores: the teacher's, and that of a fake score which learns what the generator makes. The formulas
are in `losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchoredit_model.config import EditConfig
from anchoredit_model.samplers import guided

from ..data.source import Batch
from ..networks import Network
from .forcing import forcing_views, sequence_denoiser, turns_denoiser
from .losses import SequenceDenoiser, consistency_loss, critic_loss, generator_loss
from .pretrain import edit_region_weight
from .rollout import SessionCache, last_step_x0, own_history, rollout, sample_replaced
from .stage import Draws, Stage, StageParts
from .timesteps import consistency_times, sample_times, sigma_of


class Consistency(Stage):
    """All turns of a session learn at once, each behind its history.

    That may be the student's own, as in the second stage, so that it goes on learning to mend what it made itself.
    """

    name = "distill.consistency"

    @property
    def edit(self) -> EditConfig:
        return self.config.distilled()

    def build(self, parts: StageParts) -> dict[str, Network]:
        self.teacher = parts.builder.frozen(parts.teacher)
        settings = self.settings
        return {"student": parts.builder.trained(parts.start, settings.optimiser, settings.ema)}

    def loss(self, learner: str, batch: Batch, draws: Draws, progress: float) -> Tensor:
        settings = self.settings
        batch = batch.first(settings.turns)
        before, target, text = batch.latents[:, :-1], batch.latents[:, 1:], batch.text
        history = self._own(batch, draws) if draws.chance(settings.rollout_share) and target.shape[1] > 1 else before

        def turns(model: nn.Module) -> SequenceDenoiser:
            return turns_denoiser(model, history, text, slots=self.slots, stride=self.stride)

        null = text[:, :1].expand_as(text[:, 1:])
        views = forcing_views(history.shape[1], slots=self.slots)
        without_text = sequence_denoiser(
            self.teacher.module, history, torch.cat([text[:, :-1], null], dim=1), views, self.stride
        )
        times = consistency_times(target.shape[:2], draws.own, settings.grid, settings.shift)
        return consistency_loss(
            turns(self.main.forward),
            turns(self.main.average.network.module),
            guided(turns(self.teacher.module), without_text, settings.guidance),
            target,
            draws.noise(target.shape),
            times,
            (sigma_of(times[0]), sigma_of(times[1])),
            edit_region_weight(target, before, settings.edit_region_weight),
        )

    def _own(self, batch: Batch, draws: Draws) -> Tensor:
        """Return the history [B, T, C, h, w] with some frames made by the student."""
        model = self.main.module
        replaced = sample_replaced(*batch.latents.shape[:2], self.settings.rollout, draws.own)
        return own_history(
            model, batch.latents, batch.text, replaced, self.edit, draws.noise, slots=self.slots, stride=self.stride
        )


class Matching(Stage):
    """One turn of a session learns at a time, behind what the generator made of the turns before."""

    name = "distill.matching"

    @property
    def edit(self) -> EditConfig:
        return self.config.distilled()

    def build(self, parts: StageParts) -> dict[str, Network]:
        builder, settings = parts.builder, self.settings
        self.teacher = builder.frozen(parts.teacher)
        return {
            "generator": builder.trained(parts.start, settings.optimiser, settings.ema),
            "fake": builder.trained(parts.teacher, settings.critic),
        }

    def learners(self, step: int) -> tuple[str, ...]:
        """Return the fake score in every step, so that it keeps up with the generator."""
        return ("generator", "fake") if step % self.settings.every == 0 else ("fake",)

    def loss(self, learner: str, batch: Batch, draws: Draws, progress: float) -> Tensor:
        with torch.compiler.set_stance("force_eager"):  # histories of every length: too many shapes to compile
            return (self._generator if learner == "generator" else self._fake)(batch, draws)

    def _generator(self, batch: Batch, draws: Draws) -> Tensor:
        turn, text = self._turn(batch, draws), batch.text
        cache, history = self._sessions(batch, turn - 1, draws)
        cache.encode_frame(history[:, -1], text[:, turn - 1 : turn])
        step = draws.number(0, len(self.edit.timesteps))
        noise = draws.noise((step + 1, *history[:, :1].shape))
        x0 = last_step_x0(cache.denoiser(text[:, turn : turn + 1]), noise, step, self.edit.timesteps)

        text = text[:, : turn + 1]
        null = torch.cat([text[:, :-1], text[:, :1]], dim=1)
        real = guided(
            self._score(self.teacher.module, history, text),
            self._score(self.teacher.module, history, null),
            self.settings.guidance,
        )
        fake = self._score(self.networks["fake"].module, history, text)
        times = sample_times(x0.shape[:2], self.settings.times, draws.own)
        return generator_loss(x0, real, fake, draws.noise(x0.shape), times, sigma_of(times))

    def _fake(self, batch: Batch, draws: Draws) -> Tensor:
        turn = self._turn(batch, draws)
        _, made = self._sessions(batch, turn, draws)
        history, x0 = made[:, :-1], made[:, -1:]
        predict = self._score(self.networks["fake"].forward, history, batch.text[:, : turn + 1])
        times = sample_times(x0.shape[:2], self.settings.times, draws.own)
        return critic_loss(predict, x0, draws.noise(x0.shape), times, sigma_of(times))

    def _turn(self, batch: Batch, draws: Draws) -> int:
        """Return the turn that learns, the same in all processes."""
        return draws.number(1, 1 + min(self.settings.turns, batch.latents.shape[1] - 1))

    def _sessions(self, batch: Batch, turns: int, draws: Draws) -> tuple[SessionCache, Tensor]:
        """Frames 0..turns [B, turns + 1, C, h, w] as the generator makes them; what it remembers before the last."""
        generator = self.networks["generator"]
        cache = SessionCache(generator.module, slots=self.slots, stride=self.stride, forward=generator.forward)
        noise = draws.noise((turns, len(self.edit.timesteps), *batch.latents[:, 0].shape))
        return cache, rollout(cache, batch.latents, batch.text, noise, self.edit)

    def _score(self, model: nn.Module, history: Tensor, text: Tensor) -> SequenceDenoiser:
        """Return a score of the frame behind a history, which is only looked at."""
        return sequence_denoiser(model, history, text, stride=self.stride)
