"""What a turn costs in memory, counted before it is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MemoryPolicy, TransformerConfig


@dataclass(frozen=True)
class MemoryCost:
    """Bytes of one turn's keys and values, and how many turns are visible at most."""

    per_turn: int
    turns: int

    @property
    def visible(self) -> int:
        """Bytes that the next turn sees once the session is that long."""
        return self.per_turn * self.turns

    def in_words(self, place: str) -> str:
        turns = f"{self.turns} visible turns" if self.turns != 1 else "1 visible turn"
        each = size_in_words(self.per_turn)
        return f"{size_in_words(self.visible)} of keys and values in {place} ({turns} of {each})"


def memory_cost(
    model: TransformerConfig, policy: MemoryPolicy, height: int, width: int, itemsize: int, spatial_factor: int = 8
) -> MemoryCost:
    """Of a session at a work size in pixels, whose keys and values have `itemsize` bytes per number."""
    rows, columns = (
        side // (spatial_factor * patch) for side, patch in zip((height, width), model.patch_size[1:], strict=True)
    )
    return MemoryCost(
        2 * model.num_layers * rows * columns * model.dim * itemsize, policy.anchor_frames + policy.window
    )


def size_in_words(nbytes: float) -> str:
    """Three digits, in GB or, if that is little, in MB (powers of ten)."""
    amount, unit = (nbytes / 1e9, "GB") if nbytes >= 1e8 else (nbytes / 1e6, "MB")
    return f"{amount:.2f} {unit}" if amount < 10 else f"{amount:.1f} {unit}"
