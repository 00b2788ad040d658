"""What each frame sees: earlier frames and the slots that they have.

A frame's view lists the earlier frames it attends to and numbers them; one slot is `stride` steps of temporal
RoPE. `bounded` slots number the visible frames 0, 1, 2, ... so that positions never leave the trained range,
however long the session; `absolute` slots are the turn numbers. Both agree until the window slides.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MemoryPolicy


@dataclass(frozen=True)
class FrameView:
    """Name the `frames` that one frame sees besides itself, their `slots`, and the frame's own `slot`."""

    frames: tuple[int, ...]
    slots: tuple[int, ...]
    slot: int

    @property
    def distances(self) -> tuple[int, ...]:
        """Return how far each visible frame is from the current one, in slots (negative: before it)."""
        return tuple(slot - self.slot for slot in self.slots)


def frame_view(turn: int, policy: MemoryPolicy, slot_mode: str = "bounded") -> FrameView:
    """Return the view of frame number `turn` under a policy; `slot_mode` is "bounded" or "absolute"."""
    frames = policy.visible(turn)
    if slot_mode == "absolute":
        return FrameView(frames, frames, turn)
    return FrameView(frames, tuple(range(len(frames))), len(frames))


def sequence_views(count: int, policy: MemoryPolicy | None = None, slot_mode: str = "bounded") -> tuple[FrameView, ...]:
    """Return the views of a whole sequence; without a policy every frame sees all earlier ones."""
    policy = policy or MemoryPolicy(anchor_frames=0, window=max(count, 1))
    return tuple(frame_view(turn, policy, slot_mode) for turn in range(count))


def bidirectional_views(count: int) -> tuple[FrameView, ...]:
    """Return views in which every frame sees every other one, as in Wan's own video model; only for comparisons."""
    everything = tuple(range(count))
    return tuple(
        FrameView(others, others, turn)
        for turn in everything
        for others in [everything[:turn] + everything[turn + 1 :]]
    )
