"""The K/V cache of a session: which K/V the next turn needs, and how evicted ones are recomputed.

A frame's K/V depend on its latent and prompt and on the K/V of the frames that it saw, so the key of an entry hashes
all of these: branches share entries, and an entry that was evicted is recomputed with the same calls, which gives the
same bytes on the same device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import EditConfig, KVCacheConfig
from .anchor_memory import AnchorMemory, Turn, tensor_digest
from .frame_kv import FrameKV
from .kv_store import KVStore
from .visibility import FrameView, frame_view

# (latent [C, h, w], text [T, E], text rows or None, view, visible K/V) -> the K/V of one clean frame
EncodeFrame = Callable[[Tensor, Tensor, int | None, FrameView, tuple[FrameKV, ...]], FrameKV]
# called while frames are encoded: (how many are done, how many there are in all); may raise to stop
OnEncode = Callable[[int, int], None]


class KVCacheManager:
    """Give one model the K/V of a session's visible turns.

    encode_frame      one forward at t = 0
    fingerprint       hashes or names all that the K/V depend on: weights, patches, compute dtype
    device            where the model runs
    max_device_bytes  how much the visible K/V may take there when `KVCacheConfig.device` is "auto" (None: no limit)
    on_encode         called before the first frame that has to be encoded and after each
    """

    def __init__(
        self,
        encode_frame: EncodeFrame,
        fingerprint: str,
        edit: EditConfig,
        store: KVStore,
        device: torch.device | str = "cpu",
        max_device_bytes: int | None = None,
        on_encode: OnEncode | None = None,
    ):
        self.encode_frame = encode_frame
        self.fingerprint = fingerprint
        self.edit = edit
        self.store = store
        self.device = device
        self.max_device_bytes = max_device_bytes
        self.on_encode = on_encode or (lambda done, total: None)

    def gather(
        self, memory: AnchorMemory, text: Tensor, config: KVCacheConfig | None = None
    ) -> tuple[FrameView, tuple[FrameKV, ...]]:
        """Return the view of the next turn, whose prompt embedding is `text` [T, E], and the K/V that it sees.

        `config` replaces the session's for this call.
        """
        config = config or memory.kv_cache
        view = memory.view(self.edit.slot_mode)
        return view, self._materialise(memory, self._plan(memory, view, text, config), config)

    def commit(self, memory: AnchorMemory, turn: Turn, config: KVCacheConfig | None = None) -> AnchorMemory:
        """Commit a turn and, where history streams, encode it at once with what is visible now."""
        config = config or memory.kv_cache
        after = memory.commit(turn, self.fingerprint)
        view = after.view(self.edit.slot_mode)
        if memory.policy.history == "stream" and memory.last + 1 in view.frames:
            self._materialise(after, self._plan(after, view, turn.text, config), config)
        return after

    def _plan(self, memory: AnchorMemory, view: FrameView, text: Tensor, config: KVCacheConfig) -> _Plan:
        """List every entry that `view` needs, and what encoding each would need in turn.

        A streaming frame has seen what was visible when it was committed. A refreshed one sees the visible
        frames before it and nothing else, as if they were a session of their own.
        """
        plan = _Plan(wanted=[])
        anchor_prompt = self._anchor_prompt(memory, text)
        if memory.policy.history == "refresh":
            for index, frame in enumerate(view.frames):
                seen = FrameView(view.frames[:index], view.slots[:index], view.slots[index])
                plan.wanted.append(self._step(plan, memory, frame, seen, anchor_prompt, config))
            return plan
        keys: dict[int, str] = {}
        for frame in range(len(memory)):  # keys are hashes of keys, so all of them are made; that costs nothing
            policy = memory.turns[frame].policy or memory.policy
            seen = frame_view(frame, policy, self.edit.slot_mode)
            keys[frame] = self._step(plan, memory, frame, seen, anchor_prompt, config)
        plan.wanted = [keys[frame] for frame in view.frames]
        return plan

    def _step(
        self, plan: _Plan, memory: AnchorMemory, frame: int, view: FrameView, anchor_prompt, config: KVCacheConfig
    ) -> str:
        turn = memory.turns[frame]
        text, text_digest, rows = anchor_prompt if frame == 0 else (turn.text, turn.text_digest, None)
        seen = [plan.key_of[number] for number in view.frames]
        depends_on = [self.fingerprint, self.edit.temporal_stride, config.dtype, turn.latent_digest, text_digest, rows]
        depends_on += [view.slots, view.slot, seen]
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
        plan.key_of[frame] = key
        plan.steps[key] = _Step(frame, text, rows, view, tuple(seen))
        return key

    def _materialise(self, memory: AnchorMemory, plan: _Plan, config: KVCacheConfig) -> tuple[FrameKV, ...]:
        """Return the wanted K/V, encoding what the store lacks in the order in which it was first encoded."""
        missing: set[str] = set()
        open_keys = list(plan.wanted)
        while open_keys:
            key = open_keys.pop()
            if key not in self.store and key not in missing:
                missing.add(key)
                open_keys.extend(plan.steps[key].seen)
        order = [key for key in plan.steps if key in missing]  # steps are listed oldest first
        in_use: dict[str, FrameKV] = {}
        if order:
            self.on_encode(0, len(order))
        for index, key in enumerate(order):
            step = plan.steps[key]
            later = {seen for other in order[index + 1 :] for seen in plan.steps[other].seen} | set(plan.wanted)
            for seen in step.seen:
                if seen not in in_use:
                    in_use[seen] = self._stored(seen)
            past = tuple(in_use[seen] for seen in step.seen)
            kv = self.encode_frame(memory.turns[step.frame].latent, step.text, step.rows, step.view, past)
            in_use[key] = self._placed(kv, memory, config)
            self.store.put(key, in_use[key], protect=set(plan.wanted) | later)
            in_use = {held: kv for held, kv in in_use.items() if held in later}
            self.on_encode(index + 1, len(order))
        for key in plan.wanted:
            found = self._stored(key)
            in_use[key] = self._placed(found, memory, config)
            if in_use[key] is not found:  # it was written when another device was asked for
                self.store.put(key, in_use[key], plan.wanted)
        self.store.shrink(plan.wanted)
        return tuple(in_use[key] for key in plan.wanted)

    def _placed(self, kv: FrameKV, memory: AnchorMemory, config: KVCacheConfig) -> FrameKV:
        """Convert K/V to the dtype and device that `config` asks for."""
        kv = kv.quantized(None if config.dtype == "auto" else getattr(torch, config.dtype))
        visible = kv.nbytes * (memory.policy.anchor_frames + memory.policy.window)
        crowded = config.device == "auto" and self.max_device_bytes is not None and visible > self.max_device_bytes
        if config.device == "cpu" or crowded:
            return kv.to("cpu", pinned=torch.device(self.device).type == "cuda")
        return kv.to(self.device)

    def _stored(self, key: str) -> FrameKV:
        kv = self.store.get(key)
        if kv is None:
            raise RuntimeError("an entry of the K/V cache vanished while it was needed")
        return kv

    def _anchor_prompt(self, memory: AnchorMemory, text: Tensor) -> tuple[Tensor, str, int | None]:
        """Return the text that frame 0 is encoded with, its digest, and how many of its rows count (None: all)."""
        if self.edit.anchor_prompt == "null":
            return memory.turns[0].text, memory.turns[0].text_digest, None
        first = memory.turns[1].text if len(memory) > 1 else text.float().cpu()
        return first, tensor_digest(first), 1 if self.edit.anchor_prompt == "first_token" else None


@dataclass
class _Step:
    """How one entry is computed: the frame with its text, from what it sees."""

    frame: int
    text: Tensor
    rows: int | None
    view: FrameView
    seen: tuple[str, ...]


@dataclass
class _Plan:
    """Steps by key, oldest first; the keys wanted in the end; the key that a frame has within the plan."""

    wanted: list[str]
    steps: dict[str, _Step] = field(default_factory=dict)
    key_of: dict[int, str] = field(default_factory=dict)
