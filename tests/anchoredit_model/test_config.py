"""Settings read from files are validated."""

from __future__ import annotations

import pytest

from anchoredit_model.config import EditConfig, KVCacheConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.errors import AnchorEditError


@pytest.mark.parametrize(
    "setting",
    [{"timesteps": "abc"}, {"timesteps": []}, {"timesteps": [1000, -1]}, {"timesteps": [2000]}]
    + [{"temporal_stride": "4"}, {"cfg": None}, {"shift": float("nan")}, {"shift": 0}]
    + [{"max_turns": "x"}, {"resolution": 0}, {"slot_mode": "other"}, {"sampler": 3}, {"colour": 1}],
)
def test_invalid_edit_settings_are_named(setting):
    with pytest.raises(AnchorEditError, match=rf"\b{next(iter(setting))}\b.*[.] (Set|Use|Choose|Remove) "):
        EditConfig.from_json(setting)


@pytest.mark.parametrize(
    "policy", [{"window": -1}, {"window": 1.5}, {"anchor_frames": 0, "window": 0}, {"history": "x"}]
)
def test_invalid_policies_are_named(policy):
    with pytest.raises(AnchorEditError, match=f"{next(iter(policy))} .*[.] (Set|Choose) "):
        MemoryPolicy.from_json(policy)


@pytest.mark.parametrize("config", [{"device": "disk"}, {"dtype": "int8"}])
def test_invalid_cache_settings_are_named(config):
    with pytest.raises(AnchorEditError, match=f"K/V {next(iter(config))} .*[.] Choose "):
        KVCacheConfig.from_json(config)


def test_settings_round_trip_through_json():
    for config in (
        EditConfig(timesteps=(900, 300), cfg=2.5),
        MemoryPolicy(2, 3, "refresh"),
        KVCacheConfig("cpu", "bfloat16"),
        TransformerConfig.named("14B"),
    ):
        assert type(config).from_json(config.to_json()) == config


def test_settings_of_version_0_1_are_read_under_their_new_names():
    written = {"steps": [900, 300], "guidance": 2.5, "stride": 2, "anchor_text": "first_token", "slots": "absolute"}
    written |= {"area": 512, "area_step": 32, "area_ratio": 2.0, "turns": 4, "second_history": True}
    assert EditConfig.from_json(written) == EditConfig(
        timesteps=(900, 300), cfg=2.5, temporal_stride=2, anchor_prompt="first_token", slot_mode="absolute",
        resolution=512, resolution_step=32, max_aspect_ratio=2.0, max_turns=4, negative_history=True,
    )  # fmt: skip
