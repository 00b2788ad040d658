"""Settings that come from files are checked where they enter."""

from __future__ import annotations

import pytest

from anchoredit_model.config import EditConfig, MemoryPolicy, TransformerConfig
from anchoredit_model.errors import AnchorEditError


@pytest.mark.parametrize(
    "setting",
    [{"steps": "abc"}, {"steps": []}, {"steps": [1000, -1]}, {"steps": [2000]}, {"stride": "4"}, {"guidance": None}]
    + [{"shift": float("nan")}, {"shift": 0}]
    + [{"turns": "x"}, {"area": 0}, {"slots": "other"}, {"sampler": 3}, {"colour": 1}],
)
def test_impossible_edit_settings_name_themselves(setting):
    with pytest.raises(AnchorEditError, match=rf"\b{next(iter(setting))}\b.*: (list|set|use|choose|remove) "):
        EditConfig.from_json(setting)


@pytest.mark.parametrize(
    "policy",
    [{"window": -1}, {"window": 1.5}, {"anchor_frames": 0, "window": 0}, {"history": "x"}]
    + [{"place": "disk"}, {"kv_dtype": "int8"}],
)
def test_impossible_policies_name_themselves(policy):
    with pytest.raises(AnchorEditError, match=f"{next(iter(policy)).replace('_', ' ')} .*: (set|choose) "):
        MemoryPolicy.from_json(policy)


def test_settings_survive_json():
    for config in (
        EditConfig(timesteps=(900, 300), cfg=2.5),
        MemoryPolicy(2, 3, "refresh", "ram", "bfloat16"),
        TransformerConfig.named("14B"),
    ):
        assert type(config).from_json(config.to_json()) == config
