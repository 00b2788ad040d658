"""What to do when the device runs out of memory during a turn: free some and try again, before giving up.

Nothing of it changes an image, the session or its file: only where the K/V of this one run lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ...anchoredit_model.config import KVCacheConfig
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.memory.kv_store import KVStore
from ..host.vram import is_out_of_memory, offload_kv_cache, unload_models

T = TypeVar("T")

_OFFLOADED = "Out of GPU memory: keys and values were moved to system RAM. The image is the same."
_UNLOADED = (
    "Out of GPU memory: all models were unloaded first, keys and values stay in system RAM. The image is the same."
)


def run_with_oom_fallback(
    make: Callable[[KVCacheConfig], T], config: KVCacheConfig, store: KVStore, notify: Callable[[str], None]
) -> T:
    """Return `make(config)`; when the device runs out of memory, free it and try with the K/V in system RAM."""
    offloaded = replace(config, device="cpu")
    failed = ""
    for attempt, note, free in (
        (config, "", None),
        (offloaded, _OFFLOADED, lambda: offload_kv_cache(store)),
        (offloaded, _UNLOADED, unload_models),
    ):
        if free is not None:
            free()
        try:
            made = make(attempt)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error)  # the error itself would keep the tensors of the attempt
        else:
            if note:
                notify(note)
            return made
    raise AnchorEditError(
        f"out of memory, also with keys and values in system RAM and all other models unloaded ({failed[:200]})",
        "Use a smaller window or image, or the kv_dtype float8_e4m3fn in Memory Policy",
    )
