"""Configs: names, YAML files, single settings; errors name the remedy in one line."""

from __future__ import annotations

import pytest

from anchoredit_model.checkpoint.loading import UNDISTILLED
from anchoredit_model.errors import AnchorEditError
from train.config import NAMES, OptimiserConfig
from train.config_io import load_config, to_yaml


@pytest.mark.parametrize("name", NAMES)
def test_named_configs_are_read_back_from_yaml(name, tmp_path):
    config = load_config(name)
    (tmp_path / "all.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(tmp_path / "all.yaml")) == config


def test_a_file_changes_its_base_and_settings_change_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: wan-1.3b\ncausal: {steps: 7, times: {sampler_timesteps: [1000, 500]}}\n", encoding="utf-8")
    config = load_config(str(path), ["causal.optimiser.lr=1e-4", "causal.steps=9", "engine.compile=false"])
    assert config.model == load_config("wan-1.3b").model and config.causal.steps == 9
    assert config.causal.times.sampler_timesteps == (1000.0, 500.0) and config.causal.optimiser.lr == 1e-4
    assert config.engine.compile is False and config.pretrain == load_config("wan-1.3b").pretrain


def test_wan_configs_sample_like_wan():
    for name in NAMES[1:]:
        edit = load_config(name).undistilled()
        assert all(getattr(edit, part) == getattr(UNDISTILLED, part) for part in ("num_steps", "shift", "cfg"))


def test_dependent_settings_may_come_in_any_order():
    changes = [
        "causal.times.sampler_timesteps=[1000, 500]",
        "causal.times.sampler_weights=[2, 1]",
        "causal.steps=3",
        "causal.steps=4",
    ]
    for order in (changes, [*changes[1::-1], *changes[2:]]):
        config = load_config("tiny", order)
        assert config.causal.times.sampler_weights == (2.0, 1.0) and config.causal.steps == 4
    assert load_config("tiny", ["causal.forcing=bidirectional", "causal.rollout=none"]).causal.rollout == "none"
    no_times = "causal.times={sampler_timesteps: [], sampler_weights: [], sampler_share: 0}"
    for change in ("causal.forcing=diffusion", no_times):
        with pytest.raises(AnchorEditError, match="causal.on_policy_prob must be 0 .* got 0.5.*set it to 0"):
            load_config("tiny", ["causal.on_policy_prob=0.5", change])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("pretrain.step=3", "Did you mean 'pretrain.steps'"),
        ("pretrian.steps=3", "Did you mean 'pretrain'"),
        ("causal.lr=3", "Did you mean 'causal.optimiser.lr'"),
        ("wholly_unlike=3", "Choose one of model, "),
        ("pretrain=3", "Set one of init, steps"),
        ("pretrain.steps=many", "Give a whole number"),
        ("pretrain.steps=1.5", "Give a whole number"),
        ("engine.compile=1", "Give true or false"),
        ("pretrain.optimiser.betas=[0.9]", "Give 2"),
        ("engine.parallel=magic", "engine.parallel must be one of 'ddp', 'fsdp', got 'magic'"),
        ("pretrain.batch=0", "Set both to 1 or more"),
        ("engine.log_steps=0", "engine.log_steps must be 1 or more, got 0. Set it to 1 or more"),
        ("engine.sample_steps=-1", "Set it to 0 or more"),
        ("lora.rank=-4", "lora.rank must be 0 or more, got -4"),
        ("causal.turns=0", "causal.turns must be 1 or more, got 0"),
        ("distill.consistency.grid=0", "distill.consistency.grid must be 1 or more, got 0"),
        ("distill.matching.generator_every=0", "distill.matching.generator_every must be 1 or more, got 0"),
        ("distill.matching.times.sampler_share=0.5", "List them in times.sampler_timesteps, or set it to 0"),
        ("causal.times.sampler_weights=[1, 2]", "Give each a weight"),
        ("causal.times.sampler_timesteps=[]", "List them in times.sampler_timesteps"),
        ("pretrain.steps", "Write it as key=value"),
        ("pretrain.steps=[", "must be YAML"),
    ],
)
def test_invalid_settings_are_errors_with_a_remedy(change, text):
    with pytest.raises(AnchorEditError) as error:
        load_config("tiny", [change])
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["small", "missing.yaml"])
def test_an_unknown_config_is_an_error(name):
    with pytest.raises(AnchorEditError, match="name|Choose"):
        load_config(name)


def test_the_learning_rate_rises_is_constant_and_falls_to_zero():
    rate = OptimiserConfig(lr=1.0, decay=0.4).rate
    assert rate(0) == 0 and rate(1) == 0
    assert rate(0.3) == 1 and abs(rate(0.8) - 0.5) < 1e-9
    assert OptimiserConfig(lr=1.0, warm_up=0).rate(0) == OptimiserConfig(lr=1.0).rate(1) == 1
