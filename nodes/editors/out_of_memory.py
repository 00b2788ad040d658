"""What to do when the device runs out of memory during a turn: other ways to make it, before giving up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ...anchoredit_model.config import MemoryPolicy
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.memory.anchor_memory import AnchorMemory
from ...anchoredit_model.memory.kv_store import KVStore
from ..host.model import free_device, is_out_of_memory

T = TypeVar("T")

_IN_RAM = "Out of GPU memory: keys and values were moved to main memory. The image is the same."
_READ_AGAIN = (
    "Out of memory: what turns see is read again before each of them (history refresh). Images may differ slightly."
)


def ways(policy: MemoryPolicy) -> list[tuple[MemoryPolicy, str]]:
    """The policy itself, then those that need less memory, each with what to tell the artist."""
    found = [
        (policy, ""),
        (replace(policy, place="ram"), _IN_RAM),
        (replace(policy, place="ram", history="refresh"), _READ_AGAIN),
    ]
    return [way for number, way in enumerate(found) if not number or way[0] != found[number - 1][0]]


def make_somehow(
    make: Callable[[AnchorMemory], T], memory: AnchorMemory, store: KVStore, tell: Callable[[str], None]
) -> T:
    """`make(memory)`, under another policy if the device runs out of memory; turns that follow keep that policy."""
    for policy, words in ways(memory.policy):
        try:
            made = make(replace(memory, policy=policy))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error)  # the error itself would keep the tensors of the attempt
        else:
            if words:
                tell(words)
            return made
        free_device(store)
    raise AnchorEditError(
        f"out of memory, also with keys and values in main memory and read again for every turn ({failed[:200]})",
        "Use a smaller window or image, or the kv_dtype float8_e4m3fn in Memory Policy",
    )
