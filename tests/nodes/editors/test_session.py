"""The value on the wire: networks belong to turns, branches and Rewind restore those of their turn."""

from __future__ import annotations

import pytest
import torch
from pack import pack_module

session = pack_module("nodes.editors.session")
config = pack_module("anchoredit_model.config")
geometry = pack_module("anchoredit_model.geometry")
memories = pack_module("anchoredit_model.memory.anchor_memory")

PLAIN = session.Networks("model", "clip", "vae")


def started():
    memory = memories.AnchorMemory.start(
        torch.zeros(16, 4, 4), torch.zeros(1, 2), torch.zeros(3, 32, 32), geometry.fit_into(32, 32, 32, 32)
    )
    return session.Session(memory, (PLAIN,))


def turned(before, **replaced):
    """One more turn, made with other networks if some are given."""
    turn = memories.Turn(torch.zeros(16, 4, 4), "", torch.zeros(1, 2))
    return before.extended(before.memory.commit(turn), before.current_networks.with_overrides(**replaced))


def test_replaced_network_applies_from_its_turn_on():
    one = turned(started())
    two = turned(one, model="lora")
    three = turned(two, clip="other clip")
    assert [networks.model for networks in three.networks] == ["model", "model", "lora", "lora"]
    assert [networks.clip for networks in three.networks] == ["clip", "clip", "clip", "other clip"]
    assert {networks.vae for networks in three.networks} == {"vae"}
    assert one.current_networks is PLAIN and two.current_networks.clip == "clip"  # earlier sessions stay as they were


def test_rewind_and_branches_restore_the_networks_of_their_turn():
    three = turned(turned(turned(started()), model="lora"))
    back = three.rewind(1)
    assert back.current_networks is PLAIN and len(back.memory) == 2
    assert turned(back).current_networks.model == "model"
    assert three.rewind(2).current_networks.model == "lora"


def test_a_missing_network_is_named():
    with pytest.raises(Exception, match="no CLIP") as caught:
        session.Networks(model="model").require("model", "clip", "vae")
    assert "Load the text encoder" in str(caught.value)


def test_settings_apply_to_later_turns_and_none_keeps_them():
    start = started()
    assert start.with_settings(None) is start
    changed = start.with_settings(
        session.MemorySettings(config.MemoryPolicy(1, 2, "refresh"), config.KVCacheConfig("cpu", "bfloat16"))
    )
    assert changed.memory.policy.window == 2 and changed.memory.kv_cache.device == "cpu"
    assert start.memory.policy.window == 4 and changed.networks is start.networks
