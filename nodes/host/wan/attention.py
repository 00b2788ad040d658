"""The K/V of earlier turns inside one forward of the artist's own Wan model.

`MemoryAttention` is a wrapper that the host calls around the network. For that one forward it lets self-attention
see the visible frames as well, by two hooks that every host has: a hook around each block tells the layer, and
an override of the attention call prepends their K/V. Whatever hooks and override are there already
(SageAttention, skipped layers) stay and are called from ours; the network's weights and code are untouched.

Only torch is needed here: the host's objects come as arguments.

Legend: B batch, C latent channels, h w latent size, L tokens of a frame, W width, H heads, D = W / H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....anchoredit_model.errors import AnchorEditError
from ....anchoredit_model.memory.frame_kv import FrameKV
from ....anchoredit_model.memory.visibility import FrameView
from ....anchoredit_model.networks.rope import rotate, temporal_tables
from .kv_prefetch import KVPrefetcher, Pairs

OVERRIDE = "optimized_attention_override"  # the host's name for a replacement of its attention call


class MemoryAttention:
    """Show the K/V `past`, seen as `view` says, to every forward that it wraps; `captured` holds the forward's own.

    Keys are stored unrotated in time, and the current frame has temporal position 0, so a cached key is rotated by
    (its slot - the current slot) x stride at use. K/V have batch 1 and serve every row of a call: both branches of
    guidance see the same history.
    """

    def __init__(self, view: FrameView, past: tuple[FrameKV, ...], stride: int, capture: bool = False):
        self.view = view
        self.past = past
        self.stride = stride
        self.capture = capture
        self._captured: FrameKV | None = None

    @property
    def captured(self) -> FrameKV:
        """Return the K/V of the last forward."""
        if self._captured is None:
            raise RuntimeError("no forward was captured")
        return self._captured

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes for kv in self.past)

    def __call__(self, executor, x: Tensor, timestep, context, clip_fea=None, time_dim_concat=None,
                 transformer_options=None, **rest) -> Tensor:  # fmt: skip
        """Run the network on x [B, C, 1, h, w]."""
        if x.shape[2] != 1:
            raise AnchorEditError(f"the latent holds {x.shape[2]} frames", "Give one image, a latent with one frame")
        forward = _Forward(self, transformer_options or {}, len(executor.class_obj.blocks))
        out = executor(x, timestep, context, clip_fea, time_dim_concat, forward.options, **rest)
        if self.capture:
            self._captured = forward.frame_kv()
        return out

    def rotated(self, pairs: Pairs, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return keys and values [B, L, W] of one layer's `pairs`, rotated, for the rows of `like` [B, L, W]."""
        keys, values = [], []
        for (key, value), distance in zip(pairs, self.view.distances, strict=True):
            key, value = key.to(like), value.to(like)  # [1, L, H, D]
            if key.shape[1] != like.shape[1]:
                raise AnchorEditError(
                    f"the LATENT must have the session's {key.shape[1]} tokens, got {like.shape[1]}",
                    "Use the LATENT of Apply Memory",
                )
            if distance:
                positions = torch.tensor([distance * self.stride], device=like.device)
                key = rotate(key, *temporal_tables(key.shape[-1], positions))
            keys.append(key.flatten(2).expand(like.shape[0], -1, -1))
            values.append(value.flatten(2).expand(like.shape[0], -1, -1))
        return keys, values


class _Forward:
    """Track one forward: the layer it is in, and what it captures. Its `options` carry our two hooks."""

    def __init__(self, memory: MemoryAttention, options: dict, layers: int):
        self.memory = memory
        self.prefetcher: KVPrefetcher | None = None  # until the first layer shows its device
        self.layers = layers
        self.entered: int | None = None  # the layer whose self-attention is still to come
        self.found = options.get(OVERRIDE)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        patches = options.get("patches_replace", {})
        hooks = dict(patches.get("dit", {}))
        for layer in range(layers):
            hooks["double_block", layer] = self._hook(layer, hooks.get(("double_block", layer)))
        self.options = {**options, "patches_replace": {**patches, "dit": hooks}, OVERRIDE: self.attend}

    def _hook(self, layer: int, found: Callable | None) -> Callable:
        def enter(arguments: dict, extra: dict) -> dict:
            self.entered = layer
            return found(arguments, extra) if found else extra["original_block"](arguments)

        return enter

    def attend(self, attention: Callable, q: Tensor, k: Tensor, v: Tensor, *rest, **options) -> Tensor:
        """Replace the attention call: the first one in a block is self-attention, the second cross-attention."""
        if self.entered is not None:
            layer, self.entered = self.entered, None
            if self.memory.capture:
                heads = options["heads"] if "heads" in options else rest[0]
                self.keys[layer], self.values[layer] = (t.unflatten(-1, (heads, -1)) for t in (k, v))
            self.prefetcher = self.prefetcher or KVPrefetcher(self.memory.past, k.device)
            keys, values = self.memory.rotated(self.prefetcher.layer(layer), k)
            k, v = torch.cat([*keys, k], dim=1), torch.cat([*values, v], dim=1)
        if self.found is not None:
            return self.found(attention, q, k, v, *rest, **options)
        return attention(q, k, v, *rest, **options)

    def frame_kv(self) -> FrameKV:
        """Return the K/V of this forward, one pair [1, L, H, D] per layer."""
        layers = range(self.layers)
        if sorted(self.keys) != list(layers):
            skipped = [layer for layer in layers if layer not in self.keys]
            raise AnchorEditError(
                f"layers {skipped} of the model were skipped while the turn was committed",
                "Remove the node that skips or caches layers from the MODEL",
            )
        return FrameKV(tuple(self.keys[layer] for layer in layers), tuple(self.values[layer] for layer in layers))
