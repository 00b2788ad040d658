"""The anchor memory: an edit session as a value that never changes.

A memory is a tuple of turns, the first being the anchor (the source image). `commit` returns a new memory
that shares every turn with the old one, so two turns made from one memory are two branches, and going back is
using an older memory. What attention remembers of the turns, keys and values, is not part of the value: it is
derived from it by `KVCacheManager`, kept in a `KVStore` and made again when lost.

Legend: C latent channels, h w latent size, T valid text rows, E text width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import EditConfig, MemoryPolicy
from ..errors import AnchorEditError
from ..geometry import Geometry
from ..networks.transformer import FrameKV
from ..sampling import LatentConstraint
from .kv_store import KVStore
from .visibility import FrameView, view_of

# reads one clean frame: (latent [C, h, w], text [T, E], text rows or None, view, seen blocks) -> its block
ReadFrame = Callable[[Tensor, Tensor, int | None, FrameView, tuple[FrameKV, ...]], FrameKV]
# told while frames are read: (how many are done, how many there are in all); may raise to stop
OnRead = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Turn:
    """One image of a session. Turns and memories are equal only to themselves, as a host's caches want it.

    latent       [C, h, w] float32 on the CPU, clean
    instruction  what was asked; "" for the anchor and for null edits
    text         [T, E] float32, the instruction's embedding without padding rows
    seed         of the turn's noise (None for the anchor)
    settings     how it was sampled: plain JSON values
    mask         [1, H, W] float32 at the input's size, or None
    policy       the memory's when the turn was committed: what it has seen, whatever later turns may see
    """

    latent: Tensor
    instruction: str
    text: Tensor
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None
    policy: MemoryPolicy | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent, self.text, self.mask) if tensor is not None)

    @cached_property
    def latent_digest(self) -> str:
        """Content hash; once per turn, so that a long session's keys cost no more than a short one's."""
        return _digest(self.latent)

    @cached_property
    def text_digest(self) -> str:
        return _digest(self.text)


@dataclass(frozen=True, eq=False)
class AnchorMemory:
    """Turns 0..n of a session, the source image [3, H, W] in 0..1, its geometry and what turns may see."""

    turns: tuple[Turn, ...]
    image: Tensor
    geometry: Geometry
    policy: MemoryPolicy = MemoryPolicy()
    latent_space: str = ""  # fingerprint of the VAE that the latents belong to
    model: str = ""  # fingerprint of the model that made the last turn; "" before the first

    @classmethod
    def start(
        cls,
        latent: Tensor,
        null_text: Tensor,
        image: Tensor,
        geometry: Geometry,
        policy: MemoryPolicy | None = None,
        latent_space: str = "",
    ) -> AnchorMemory:
        """A session that knows only its anchor: latent [C, h, w] and the embedding [T, E] of the empty text."""
        anchor = Turn(latent.float().cpu(), "", null_text.float().cpu())
        return cls((anchor,), image.float().cpu(), geometry, policy or MemoryPolicy(), latent_space)

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def last(self) -> int:
        """Number of the newest turn; 0 is the anchor."""
        return len(self.turns) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the session itself, without keys and values."""
        return self.image.nbytes + sum(turn.nbytes for turn in self.turns)

    def commit(self, turn: Turn, model: str = "") -> AnchorMemory:
        """A new memory with one more turn; this one stays as it is."""
        self._check_latent(turn.latent)
        kept = replace(turn, latent=turn.latent.float().cpu(), text=turn.text.float().cpu(), policy=self.policy)
        return replace(self, turns=(*self.turns, kept), model=model or self.model)

    def rewind(self, turn: int) -> AnchorMemory:
        """The memory as it was after turn number `turn`; 0 goes back to the source."""
        if not 0 <= turn <= self.last:
            raise AnchorEditError(f"there is no turn {turn} to go back to", f"Choose 0 to {self.last}")
        return replace(self, turns=self.turns[: turn + 1])

    def with_policy(self, **policy: Any) -> AnchorMemory:
        """The same turns under another policy; options as in `MemoryPolicy`, None keeps the present value."""
        return replace(self, policy=self.policy.with_options(**policy))

    def with_prompt(self, text: Tensor) -> AnchorMemory:
        """The same images as if `text` [T, E] had asked for each: the second history of published guidance."""
        return replace(self, turns=tuple(replace(turn, text=text) for turn in self.turns))

    def mask_constraint(self, mask: Tensor) -> LatentConstraint:
        """Puts the newest latent back outside a mask [1, H, W] of the input's size: x0 [..., C, h, w] -> x0.

        A latent cell is inside if any of its pixels is above 0. Raises AnchorEditError if the mask has another size
        or is black everywhere.
        """
        geometry, before = self.geometry, self.turns[-1].latent
        if mask.shape != (1, geometry.input_height, geometry.input_width):
            raise AnchorEditError(
                f"the mask is {mask.shape[-1]}x{mask.shape[-2]}, the image "
                f"{geometry.input_width}x{geometry.input_height}",
                "Draw the mask at the image's size",
            )
        if not (mask > 0).any():
            raise AnchorEditError("the mask is black everywhere", "Paint white where the edit may change the image")
        work = geometry.to_work((mask > 0).float()[None])
        inside = F.max_pool2d(work, geometry.work_height // before.shape[-2])[0] > 0  # [1, h, w]

        def constraint(x0: Tensor) -> Tensor:
            self._check_latent(x0)
            return torch.where(inside.to(x0.device), x0, before.to(x0))

        return constraint

    def _check_latent(self, latent: Tensor) -> None:
        if latent.shape[-3:] != self.turns[0].latent.shape:
            raise AnchorEditError(
                f"the turn's latent is {list(latent.shape[-3:])}, the session's {list(self.turns[0].latent.shape)}",
                "Use the model and size the session was started with",
            )

    def view(self, slots: str = "bounded") -> FrameView:
        """What the next turn sees."""
        return view_of(len(self.turns), self.policy, slots)


class KVCacheManager:
    """Keys and values of a memory's visible turns, for one model.

    `read_frame` is one forward at t = 0; `identity` names everything that makes its numbers: weights, patches,
    compute dtype. Blocks come from the store; a lost one is read again with the same calls, so it has the same
    bytes on the same device. `device` is where the model runs, `share` the bytes that the visible blocks may take
    there when the policy leaves the place open (None: any number). `on_read` is told before the first frame that has
    to be read and after each.
    """

    def __init__(
        self,
        read_frame: ReadFrame,
        identity: str,
        edit: EditConfig,
        store: KVStore,
        device: torch.device | str = "cpu",
        share: int | None = None,
        on_read: OnRead | None = None,
    ):
        self.read_frame = read_frame
        self.identity = identity
        self.edit = edit
        self.store = store
        self.device = device
        self.share = share
        self.on_read = on_read or (lambda done, total: None)

    def visible(self, memory: AnchorMemory, text: Tensor) -> tuple[FrameView, tuple[FrameKV, ...]]:
        """The view of the next turn, whose embedding is `text` [T, E], and the blocks it sees, in order."""
        view = memory.view(self.edit.slot_mode)
        plan = self._plan(memory, view, text)
        return view, self._fetch(memory, plan)

    def commit(self, memory: AnchorMemory, turn: Turn) -> AnchorMemory:
        """Commits a turn and, where history streams, reads it at once with what is visible now."""
        after = memory.commit(turn, self.identity)
        view = after.view(self.edit.slot_mode)
        if memory.policy.history == "stream" and memory.last + 1 in view.frames:
            self._fetch(after, self._plan(after, view, turn.text))
        return after

    def _plan(self, memory: AnchorMemory, view: FrameView, text: Tensor) -> _Plan:
        """Every block that `view` needs, and what reading each would need in turn.

        A streaming frame has seen what was visible when it was committed. A refreshed one sees the visible
        frames before it and nothing else, as if they were a session of their own.
        """
        anchor_text = self._anchor_text(memory, text)
        plan = _Plan(wanted=[])
        if memory.policy.history == "refresh":
            for place, frame in enumerate(view.frames):
                seen = FrameView(view.frames[:place], view.slots[:place], view.slots[place])
                plan.wanted.append(self._step(plan, memory, frame, seen, anchor_text))
            return plan
        keys: dict[int, str] = {}
        for frame in range(len(memory)):  # keys are hashes of keys, so all of them are made; that costs nothing
            policy = memory.turns[frame].policy or memory.policy
            keys[frame] = self._step(plan, memory, frame, view_of(frame, policy, self.edit.slot_mode), anchor_text)
        plan.wanted = [keys[frame] for frame in view.frames]
        return plan

    def _step(self, plan: _Plan, memory: AnchorMemory, frame: int, view: FrameView, anchor_text) -> str:
        turn = memory.turns[frame]
        text, text_digest, rows = anchor_text if frame == 0 else (turn.text, turn.text_digest, None)
        seen = [plan.key_of[number] for number in view.frames]
        facts = [
            self.identity,
            self.edit.temporal_stride,
            memory.policy.kv_dtype,
            turn.latent_digest,
            text_digest,
            rows,
        ]
        facts += [view.slots, view.slot, seen]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        plan.key_of[frame] = key
        plan.steps[key] = _Step(frame, text, rows, view, tuple(seen))
        return key

    def _fetch(self, memory: AnchorMemory, plan: _Plan) -> tuple[FrameKV, ...]:
        """The wanted blocks, reading what the store has lost in the order in which it was first read."""
        missing: set[str] = set()
        open_keys = list(plan.wanted)
        while open_keys:
            key = open_keys.pop()
            if key not in self.store and key not in missing:
                missing.add(key)
                open_keys.extend(plan.steps[key].seen)
        order = [key for key in plan.steps if key in missing]  # steps are listed oldest first
        at_hand: dict[str, FrameKV] = {}
        if order:
            self.on_read(0, len(order))
        for place, key in enumerate(order):
            step = plan.steps[key]
            later = {seen for other in order[place + 1 :] for seen in plan.steps[other].seen} | set(plan.wanted)
            for seen in step.seen:
                if seen not in at_hand:
                    at_hand[seen] = self._held(seen)
            blocks = tuple(at_hand[seen] for seen in step.seen)
            block = self.read_frame(memory.turns[step.frame].latent, step.text, step.rows, step.view, blocks)
            at_hand[key] = self._kept(block, memory.policy)
            self.store.put(key, at_hand[key], protect=set(plan.wanted) | later)
            at_hand = {held: block for held, block in at_hand.items() if held in later}
            self.on_read(place + 1, len(order))
        for key in plan.wanted:
            found = self._held(key)
            at_hand[key] = self._kept(found, memory.policy)
            if at_hand[key] is not found:  # it was written under a policy with another place
                self.store.put(key, at_hand[key], plan.wanted)
        self.store.shrink(plan.wanted)
        return tuple(at_hand[key] for key in plan.wanted)

    def _kept(self, block: FrameKV, policy: MemoryPolicy) -> FrameKV:
        """The block in the dtype and place that the policy asks for."""
        block = block.rounded(None if policy.kv_dtype == "auto" else getattr(torch, policy.kv_dtype))
        visible = block.nbytes * (policy.anchor_frames + policy.window)
        crowded = policy.place == "auto" and self.share is not None and visible > self.share
        if policy.place == "ram" or crowded:
            return block.to("cpu", pinned=torch.device(self.device).type == "cuda")
        return block.to(self.device)

    def _held(self, key: str) -> FrameKV:
        block = self.store.get(key)
        if block is None:
            raise RuntimeError("a remembered block vanished while it was needed")
        return block

    def _anchor_text(self, memory: AnchorMemory, text: Tensor) -> tuple[Tensor, str, int | None]:
        """The text frame 0 is read with, its digest, and how many of its rows count (None: all)."""
        if self.edit.anchor_prompt == "null":
            return memory.turns[0].text, memory.turns[0].text_digest, None
        first = memory.turns[1].text if len(memory) > 1 else text.float().cpu()
        return first, _digest(first), 1 if self.edit.anchor_prompt == "first_token" else None


@dataclass
class _Step:
    """How one block is read: the frame with its text, from what it sees."""

    frame: int
    text: Tensor
    rows: int | None
    view: FrameView
    seen: tuple[str, ...]


@dataclass
class _Plan:
    """Steps by block key, oldest first; the keys wanted in the end; the key that a frame has within the plan."""

    wanted: list[str]
    steps: dict[str, _Step] = field(default_factory=dict)
    key_of: dict[int, str] = field(default_factory=dict)


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
