"""Keys and values (K/V) of one encoded frame.

Legend: L tokens of a frame, H heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrameKV:
    """Hold the K/V of one frame, a pair [1, L, H, D] per layer; keys are normed and rotated in space only.

    They may lie on another device and in another dtype than the model computes in; attention converts them at use.
    `quantization_error` is the relative error (RMS) that a narrower dtype has caused, 0 without one.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    quantization_error: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    def to(self, device: torch.device | str, pinned: bool = False) -> FrameKV:
        """Return the same K/V on a device; itself if it is there already.

        `pinned` system RAM can be copied while a GPU computes.
        """
        device = torch.device(device)
        if device == self.device:
            return self
        move = (lambda tensor: _pinned(tensor.to(device))) if pinned else (lambda tensor: tensor.to(device))
        return self._map(move, self.quantization_error)

    def quantized(self, dtype: torch.dtype | None) -> FrameKV:
        """Return the same K/V in `dtype`; itself if it is in that already, or for None."""
        before = self.keys[0].dtype
        if dtype in (None, before):
            return self
        largest = torch.finfo(dtype).max
        if torch.finfo(dtype).eps <= torch.finfo(before).eps:
            return self._map(lambda tensor: tensor.to(dtype), self.quantization_error)
        rounded = self._map(lambda tensor: tensor.clamp(-largest, largest).to(dtype), 0.0)  # float8 would make it NaN
        pairs = zip((*rounded.keys, *rounded.values), (*self.keys, *self.values))
        error, energy = (
            torch.stack(sums).sum()
            for sums in zip(*((((a.float() - b.float()) ** 2).sum(), (b.float() ** 2).sum()) for a, b in pairs))
        )
        return replace(rounded, quantization_error=math.hypot(self.quantization_error, (error / energy).sqrt().item()))

    def _map(self, change: Callable[[Tensor], Tensor], quantization_error: float) -> FrameKV:
        return FrameKV(tuple(map(change, self.keys)), tuple(map(change, self.values)), quantization_error)


def _pinned(tensor: Tensor) -> Tensor:
    """Return the tensor in pinned memory where the machine grants any: it is scarce on some."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
