"""Rotary positions in three axes, as in Wan 2.1 (RoPE: https://arxiv.org/abs/2104.09864).

A head's D channels are D/2 interleaved pairs; the first D - 4*(D//6) channels rotate with time, the
next 2*(D//6) with height and the last 2*(D//6) with width (128 -> 44/42/42), each with theta = 10000. Rotation is
relative: only differences of positions matter, so a cached key can be stored unrotated in time and rotated by its
distance at use.
"""

from __future__ import annotations

import torch
from torch import Tensor

_THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Return how many channels of one head rotate with (time, height, width)."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def spatial_tables(head_dim: int, rows: int, columns: int, device=None) -> tuple[Tensor, Tensor]:
    """Return cos and sin [rows * columns, head_dim / 2] of one frame at temporal position 0, float32."""
    time, height, width = axis_dims(head_dim)
    y = _angles(torch.arange(rows, device=device), height)[:, None].expand(-1, columns, -1)
    x = _angles(torch.arange(columns, device=device), width)[None].expand(rows, -1, -1)
    unrotated = torch.zeros(rows, columns, time // 2, dtype=torch.float64, device=device)
    angles = torch.cat([unrotated, y, x], dim=-1).reshape(rows * columns, -1)
    return angles.cos().float(), angles.sin().float()


def temporal_tables(head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin [len(positions), time / 2] of the channels that rotate with time, float32."""
    angles = _angles(positions, axis_dims(head_dim)[0])
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first pairs of x [..., D], as many as cos and sin [..., pairs] have; in float32 and back."""
    channels = 2 * cos.shape[-1]
    pairs = x[..., :channels].float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    out = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
    return out if channels == x.shape[-1] else torch.cat([out, x[..., channels:]], dim=-1)


def _angles(positions: Tensor, dims: int) -> Tensor:
    frequencies = _THETA ** (-torch.arange(0, dims, 2, dtype=torch.float64, device=positions.device) / dims)
    return positions.double()[:, None] * frequencies
