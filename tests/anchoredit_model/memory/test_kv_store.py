"""The store evicts the least recently used entries first, never protected ones, and counts every byte."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from anchoredit_model.memory.frame_kv import FrameKV
from anchoredit_model.memory.kv_store import KVStore

BYTES = 2 * 3 * 4 * 5 * 4  # keys and values of one layer of `frame_kv`, float32


def frame_kv(layers: int = 1) -> FrameKV:
    return FrameKV(*(tuple(torch.zeros(1, 3, 4, 5) for _ in range(layers)) for _ in range(2)))


def filled(keys: str, budget: int | None = None) -> KVStore:
    store = KVStore(budget)
    for key in keys:
        store.put(key, frame_kv())
    return store


def held(store: KVStore) -> str:
    return "".join(key for key in "abcdefgh" if key in store)


def test_get_returns_only_stored_entries():
    store, one = KVStore(), frame_kv()
    store.put("a", one)
    assert store.get("a") is one and store.get("b") is None
    assert len(store) == 1 and "a" in store and "b" not in store


def test_nbytes_counts_all_keys_and_values():
    store = KVStore()
    store.put("a", frame_kv())
    store.put("b", frame_kv(layers=3))
    assert store.nbytes == 4 * BYTES
    store.put("b", frame_kv())  # written again, not twice
    assert store.nbytes == 2 * BYTES and len(store) == 2


@pytest.mark.parametrize(
    ("budget", "kept"), [(None, "abcd"), (4 * BYTES, "abcd"), (3 * BYTES, "bcd"), (3 * BYTES - 1, "cd"), (0, "d")]
)
def test_budget_evicts_the_oldest_entries(budget, kept):
    store = filled("abcd", budget)
    assert held(store) == kept
    if budget:
        assert store.nbytes <= budget


def test_get_counts_as_use_and_membership_test_does_not():
    store = filled("abc", 3 * BYTES)
    assert store.get("a") is not None and "b" in store
    store.put("d", frame_kv())
    assert held(store) == "acd"
    store.put("c", frame_kv())  # writing is a use, too
    store.put("e", frame_kv())
    assert held(store) == "cde"


def test_protected_entries_stay_even_over_the_budget():
    store = filled("abc", 3 * BYTES)
    store.put("d", frame_kv(), protect=("a", "b"))
    assert held(store) == "abd"
    store.put("e", frame_kv(), protect="abd")
    assert held(store) == "abde" and store.nbytes > store.budget
    store.shrink(protect="b")
    assert held(store) == "bde"  # only as much as the budget asks for
    store.budget = 0
    store.shrink()
    assert held(store) == "" and store.nbytes == 0


def test_retain_evicts_all_others_whatever_the_budget():
    store = filled("abcd")
    store.retain("bx")
    assert held(store) == "b" and len(store) == 1


def test_a_device_is_freed_without_evicting():
    @dataclass
    class Placed:
        device: torch.device
        nbytes: int

        def to(self, device: str) -> Placed:
            return Placed(torch.device(device), self.nbytes)

    store, gpu, other = KVStore(), torch.device("cuda:0"), torch.device("cuda:1")
    for key, device in (("a", gpu), ("b", other), ("c", torch.device("cpu")), ("d", gpu)):
        store.put(key, Placed(device, 10))
    assert store.nbytes_on(gpu) == 20
    store.offload(gpu)
    assert [store.get(key).device.type for key in "abcd"] == ["cpu", "cuda", "cpu", "cpu"]
    assert store.nbytes_on(gpu) == 0 and store.nbytes == 40
