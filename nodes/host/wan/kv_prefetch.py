"""K/V on their way from system RAM to the layer that needs them.

They are copied to the GPU layer by layer, each ahead of its use: while one layer computes, the next one's are copied
on a stream of their own, so that the GPU holds two layers of them and not all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....anchoredit_model.memory.frame_kv import FrameKV

Pairs = list[tuple[Tensor, Tensor]]  # keys and values [1, L, H, D] of every visible frame


class KVPrefetcher:
    """Give the layers of `past` on `device`, asked for in order; a first layer begins a new forward."""

    def __init__(self, past: tuple[FrameKV, ...], device: torch.device):
        self.past = past
        self.device = device
        self.layers = len(past[0].keys) if past else 0
        ahead = device.type == "cuda" and any(kv.device != device for kv in past)
        self._stream = torch.cuda.Stream(device) if ahead else None
        self._coming: dict[int, Pairs] = {}

    def layer(self, number: int) -> Pairs:
        """Return one layer's K/V on the device, in the dtype they are kept in."""
        if self._stream is None:
            return self._copied(number)
        pairs = self._coming.pop(number) if number in self._coming else self._sent(number)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in (tensor for pair in pairs for tensor in pair):
            tensor.record_stream(current)  # not to be overwritten before this layer has used it
        self._coming = {number + 1: self._sent(number + 1)} if number + 1 < self.layers else {}
        return pairs

    def _sent(self, number: int) -> Pairs:
        with torch.cuda.stream(self._stream):
            return self._copied(number, non_blocking=True)

    def _copied(self, number: int, non_blocking: bool = False) -> Pairs:
        return [
            (
                kv.keys[number].to(self.device, non_blocking=non_blocking),
                kv.values[number].to(self.device, non_blocking=non_blocking),
            )
            for kv in self.past
        ]
