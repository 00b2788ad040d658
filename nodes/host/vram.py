"""Device memory: what K/V may take of it, and what to do when it is full."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from ...anchoredit_model.memory.kv_store import KVStore


def is_out_of_memory(error: Exception) -> bool:
    """Say whether the device ran out of memory; older hosts do not know all kinds of error for it."""
    return isinstance(error, comfy.model_management.OOM_EXCEPTION) or "out of memory" in str(error).lower()


def offload_kv_cache(store: KVStore) -> None:
    """Move all K/V to system RAM and release what the allocator holds."""
    store.offload(comfy.model_management.get_torch_device())
    comfy.model_management.soft_empty_cache()


def kv_vram_limit(patcher, store: KVStore) -> int:
    """Count the bytes that visible K/V may take on the device beside the whole model and its activations.

    From what is free now; the loaded part of the model and the K/V there count as free.
    """
    device = patcher.load_device
    free: Any = comfy.model_management.get_free_memory(device)
    free = free + patcher.loaded_size() + store.nbytes_on(device)
    return max(0, int(free - patcher.model_size() - comfy.model_management.minimum_inference_memory()))


def kv_cache_budget() -> int:
    """Count the bytes that all K/V may take: a quarter of what the device has."""
    total: Any = comfy.model_management.get_total_memory(comfy.model_management.get_torch_device())
    return int(total) // 4


def unload_models() -> None:
    """Take all models off the device; those in use come back when they run."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
