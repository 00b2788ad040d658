"""How many bytes the K/V of visible turns take, counted before a turn is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MemoryPolicy, TransformerConfig


@dataclass(frozen=True)
class KVSize:
    """Hold the bytes of one turn's K/V, and how many turns are visible at most."""

    per_turn: int
    turns: int

    @property
    def visible(self) -> int:
        """Count the bytes that the next turn sees once the session is that long."""
        return self.per_turn * self.turns

    def describe(self, where: str) -> str:
        """Say in one line how much lies where."""
        turns = f"{self.turns} visible turns" if self.turns != 1 else "1 visible turn"
        return f"{format_bytes(self.visible)} of K/V in {where} ({turns} of {format_bytes(self.per_turn)})"


def kv_size(
    model: TransformerConfig, policy: MemoryPolicy, height: int, width: int, itemsize: int, spatial_factor: int = 8
) -> KVSize:
    """Count the K/V of a session edited at a size in pixels, with `itemsize` bytes per number."""
    rows, columns = (
        side // (spatial_factor * patch) for side, patch in zip((height, width), model.patch_size[1:], strict=True)
    )
    return KVSize(2 * model.num_layers * rows * columns * model.dim * itemsize, policy.anchor_frames + policy.window)


def format_bytes(nbytes: float) -> str:
    """Format bytes with three digits, in GB or, below 0.1 GB, in MB (powers of ten)."""
    amount, unit = (nbytes / 1e9, "GB") if nbytes >= 1e8 else (nbytes / 1e6, "MB")
    return f"{amount:.2f} {unit}" if amount < 10 else f"{amount:.1f} {unit}"
