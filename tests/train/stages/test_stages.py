"""Stages 2 and 3 on a small model: what learns, from which histories, and the same work in all processes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from anchoredit_model.config import EditConfig, TransformerConfig
from anchoredit_model.networks.transformer import CausalWanTransformer
from train.config import CausalConfig, Config, ConsistencyConfig, DistillConfig, DistributionMatchingConfig
from train.data.source import Batch
from train.networks import CompiledGelu
from train.stages.causal import CausalStage
from train.stages.degrade import DegradationConfig
from train.stages.distill import ConsistencyStage, DistributionMatchingStage
from train.stages.forcing import turns_denoiser
from train.stages.rollout import SessionCache, rollout
from train.stages.stage import RandomStreams
from train.stages.timesteps import TimestepConfig
from train.weight_init import initialise

SIZES = TransformerConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, freq_dim=16, text_dim=12)
LATENT_DEGRADATIONS = DegradationConfig(p_round_trip=0.0, p_jpeg=0.0)  # the kinds that need no VAE


def network(seed: int):
    torch.manual_seed(seed)
    module = CausalWanTransformer(SIZES)
    initialise(module)
    torch.nn.init.normal_(module.head.head.weight, std=0.1)
    return SimpleNamespace(module=module, forward=module, averaged=SimpleNamespace(module=module))


def stage_of(kind, settings, **networks):
    """The stage around small networks, without the engine."""
    stage = kind.__new__(kind)
    stage.config = Config(SIZES, distill=DistillConfig())
    stage.settings, stage.stride, stage.slots, stage.vae = settings, 4, "bounded", None
    stage.networks = networks
    return stage


def causal(**settings) -> CausalStage:
    chosen = CausalConfig(
        steps=1, turns=3, degradations=LATENT_DEGRADATIONS, rollout_start=0, rollout_share=1, **settings
    )
    return stage_of(CausalStage, replace(chosen, rollout_steps=2), model=network(0))


def batch(turns: int = 3) -> Batch:
    torch.manual_seed(5)
    return Batch(torch.randn(2, turns + 1, 16, 4, 4), torch.randn(2, turns + 1, 3, 12))


def streams(step: int = 0, micro: int = 0) -> RandomStreams:
    return RandomStreams.of(1, "stage", "model", step, micro, torch.device("cpu"))


def learned(module) -> list[str]:
    """The names of the parameters that have a gradient."""
    return [name for name, parameter in module.named_parameters() if parameter.grad is not None]


def test_the_compiled_gelu_equals_that_of_the_model():
    x = torch.linspace(-9, 9, 999, dtype=torch.float32, requires_grad=True)
    plain, fast = (gelu(x) for gelu in (torch.nn.GELU(approximate="tanh"), CompiledGelu()))
    slopes = [torch.autograd.grad(out.sum(), x)[0] for out in (plain, fast)]
    assert torch.allclose(fast, plain, atol=2e-6) and torch.allclose(slopes[1], slopes[0], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forcing", "rollout"),
    [*product(("teacher", "diffusion"), ("cached", "one_pass", "none")), ("bidirectional", "none")],
)
def test_every_weight_learns_with_every_kind_of_history(forcing, rollout):
    """Also under autocast, whose cache would keep weights that a rollout cast without a gradient."""
    stage = causal(forcing=forcing, rollout=rollout, rollout_prob=1.0)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = stage.loss("model", batch(), streams(), 1.0)
    loss.backward()
    module = stage.main.module
    assert loss.isfinite() and learned(module) == [name for name, _ in module.named_parameters()]


@pytest.mark.slow
def test_histories_follow_the_settings():
    """Without degradation or rollout the history is the truth; the anchor is never replaced; targets stay true."""
    histories = {}
    for name, settings in {
        "truth": {"degrade": False, "rollout": "none"},
        "degraded": {"degrade": True, "rollout": "none"},
        "self-rollout": {"degrade": False, "rollout": "cached", "rollout_prob": 1.0},
        "one pass": {"degrade": False, "rollout": "one_pass", "rollout_prob": 1.0},
    }.items():
        stage = causal(instruction_dropout=0.0, **settings)
        module = stage.main.module

        def forward(sequence, times, text, *rest, module=module, name=name):
            histories[name] = sequence.transpose(1, 2)[:, :3], times
            return module(sequence, times, text, *rest)

        stage.main.forward = forward
        stage.loss("model", batch(), streams(), 1.0)
    truth = batch().latents[:, :3]
    assert torch.equal(histories["truth"][0], truth)
    for name in ("self-rollout", "one pass"):
        assert (
            torch.equal(histories[name][0][:, 0], truth[:, 0])
            and not histories[name][0][:, 1:].isclose(truth[:, 1:]).all()
        )
    assert not torch.equal(histories["degraded"][0], truth) and (histories["degraded"][0] - truth).abs().mean() < 0.5
    for _, times in histories.values():
        assert (times[:, :3] == 0).all() and (times[:, 3:] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("last", [0, 2])
def test_on_policy_steps_equal_inference(monkeypatch, last):
    """The loss is the error of the sampler's x0, stopped at a step, behind the true history."""
    sampled, steps, turns = [], (1000.0, 750.0, 500.0), 3
    noise = RandomStreams.noise
    monkeypatch.setattr(RandomStreams, "noise", lambda self, shape: sampled.append(noise(self, shape)) or sampled[-1])
    times = TimestepConfig(sampler_timesteps=steps, sampler_weights=tuple(float(step == last) for step in range(3)))
    stage = causal(
        on_policy_prob=1.0, times=times, degrade=False, rollout="none", instruction_dropout=0.0, turn_weight=0.0
    )
    loss = stage.loss("model", batch(turns), streams(), 1.0)
    edit = EditConfig(sampler="renoise", timesteps=steps[: last + 1], cfg=1.0)
    errors = []
    for turn in range(1, turns + 1):
        latents, text = batch(turns).latents[:, : turn + 1], batch(turns).text
        replaced = torch.zeros(2, turn + 1, dtype=torch.bool)
        replaced[:, turn] = True
        used = sampled[0][:, :, turn - 1].expand(turn, *sampled[0][:, :, 0].shape)  # only the last turn's counts
        made = rollout(SessionCache(stage.main.module), latents, text, used, edit, replaced)
        errors.append((made - latents)[:, turn].square().mean())
    assert torch.allclose(loss, torch.stack(errors).mean() / (steps[last] / 1000), rtol=1e-4)
    loss.backward()
    assert learned(stage.main.module) == [name for name, _ in stage.main.module.named_parameters()]


@pytest.mark.slow
def test_turns_and_rollouts_grow_over_the_budget():
    stage = causal(rollout_end=1.0, rollout_prob=0.5, first_turns=1, turns_end=1.0)
    frames = []
    for progress in (0.0, 0.5, 1.0):
        module = stage.main.module
        stage.main.forward = lambda sequence, *rest, module=module: (
            frames.append(sequence.shape[2]) or module(sequence, *rest)
        )
        stage.loss("model", batch(), streams(), progress)
    assert frames == [2, 4, 6]
    assert [stage._probability(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.25, 0.5]


def test_micro_batches_share_the_random_numbers_that_determine_the_work():
    first, second, later = streams(3, 0), streams(3, 1), streams(4, 0)
    numbers = [[each.integer(0, 1000) for _ in range(5)] for each in (first, second, later)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert not torch.equal(first.noise((8,)), second.noise((8,)))


@pytest.mark.slow
def test_consistency_trains_only_the_student():
    stage = stage_of(ConsistencyStage, ConsistencyConfig(steps=1), student=network(0))
    stage.teacher = network(1)
    stage.main.averaged = network(2)
    loss = stage.loss("student", batch(), streams(), 0.0)
    loss.backward()
    module = stage.main.module
    assert loss > 0 and learned(module) == [name for name, _ in module.named_parameters()]
    assert not learned(stage.teacher.module) and not learned(stage.main.averaged.module)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "own"), [(0.0, [False, False, False]), (1.0, [False, True, True])])
def test_consistency_with_histories_of_the_student(monkeypatch, share, own):
    """All three models get one history: the truth, or the anchor and turns that the student sampled."""
    seen = []

    def spy(model, history, *args, **options):
        seen.append(history)
        return turns_denoiser(model, history, *args, **options)

    monkeypatch.setattr("train.stages.distill.turns_denoiser", spy)
    settings = ConsistencyConfig(steps=1, rollout_prob=1.0, rollout_share=share)
    stage = stage_of(ConsistencyStage, settings, student=network(0))
    stage.teacher = network(1)
    stage.main.averaged = network(2)
    sessions = batch()
    stage.loss("student", sessions, streams(), 0.0).backward()
    assert all(torch.equal(history, seen[0]) for history in seen) and len(seen) == 3
    differs = [not torch.equal(seen[0][:, frame], sessions.latents[:, frame]) for frame in range(3)]
    assert differs == own


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["generator", "fake"])
def test_matching_trains_one_network_at_a_time(learner):
    stage = stage_of(
        DistributionMatchingStage,
        DistributionMatchingConfig(steps=1, generator_every=5),
        generator=network(0),
        fake=network(1),
    )
    stage.teacher = network(2)
    for step in range(4):  # several turns and steps of the sampler
        stage.loss(learner, batch(), streams(step), 0.0).backward()
    for name, other in stage.networks.items():
        expected = [name for name, _ in other.module.named_parameters()] if name == learner else []
        assert learned(other.module) == expected
    assert not learned(stage.teacher.module)
    assert [stage.learners(step) for step in (0, 1, 5)] == [("generator", "fake"), ("fake",), ("generator", "fake")]
