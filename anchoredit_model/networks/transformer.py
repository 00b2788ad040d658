"""Wan 2.1's text-to-video transformer with frame-causal attention.

One module serves both uses. A whole sequence: every frame of [B, C, F, h, w] attends to the frames that its view
lists, each by its own attention call, so no dense mask exists and no work is done for invisible frames. A cached
turn: F = 1 and the visible frames come as `FrameKV`s.

Weights are Wan's own, key for key (https://github.com/Wan-Video/Wan2.1, arXiv 2503.20314); the frame-causal
use, one text per frame and the temporal stride are AnchorEdit's (https://github.com/xuhang07/AnchorEdit).

Legend: B batch, C latent channels, F frames, h w latent size, L = (h/2)*(w/2) tokens of a frame, W width,
H heads, D = W / H, T text rows, E text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TransformerConfig
from ..memory.frame_kv import FrameKV
from ..memory.visibility import FrameView, sequence_views
from .rope import rotate, spatial_tables, temporal_tables


@dataclass(frozen=True, eq=False)
class TextContext:
    """Hold the cross-attention K/V of the texts of B * F frames, a pair [B*F, T', H, D] per layer.

    `bias` [B*F, 1, 1, T'] float32 is the logarithm of how often a row counts, or None where every row counts
    once: the many zero rows that pad a text are all alike, so one row stands for them.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class EmbeddedText:
    """Hold embedded texts of B * F frames before any layer projects them: rows [B*F, T + 1, W], the last for padding.

    That one stands for `repeats` rows, or counts by a `bias` as in `TextContext`. In training every layer projects
    the rows by itself, so that their K/V need not be kept between the layers' passes.
    """

    rows: Tensor
    repeats: int
    bias: Tensor | None

    def key_value(self, attention: TextCrossAttention) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values [B*F, T', H, D]."""
        key, value = attention.key_value(self.rows)
        return (key, value) if self.repeats == 1 else (self._repeated(key), self._repeated(value))

    def _repeated(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], x[:, -1:].expand(-1, self.repeats, -1, -1)], dim=1)


class CausalWanTransformer(nn.Module):
    """Predict the flow (noise - clean) of every frame."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.dim
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.gradient_checkpointing = False

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor | TextContext,
        views: tuple[FrameView, ...] | None = None,
        stride: int = 4,
        past: tuple[FrameKV, ...] | None = None,
    ) -> Tensor:
        """Predict the flow [B, C, F, h, w] of latents [B, C, F, h, w].

        timesteps [B, F] in 0..1000, text [B, F, T, E]. `views` says what every frame sees (default: all earlier
        frames of the sequence). With `past`, F is 1 and `views` holds the one frame's view, whose `frames` are
        those of `past` in order.
        """
        flow, _ = self._run(latents, timesteps, text, views, stride, past, keep=False)
        return flow

    @torch.no_grad()
    def encode_frame(
        self,
        latent: Tensor,
        text: Tensor | TextContext,
        view: FrameView | None = None,
        stride: int = 4,
        past: tuple[FrameKV, ...] = (),
    ) -> tuple[FrameKV, Tensor]:
        """Encode one clean frame [1, C, 1, h, w] at t = 0 and return its K/V and the flow [1, C, 1, h, w]."""
        clean = torch.zeros(1, 1, device=latent.device)
        view = view or FrameView((), (), 0)
        flow, kv = self._run(latent, clean, text, (view,), stride, past, keep=True)
        assert kv is not None
        return kv, flow

    def embed_text(self, text: Tensor, lengths: Tensor | None = None, expand: bool | None = None) -> TextContext:
        """Project text [B, F, T, E] to the K/V of every layer, once for all steps of a turn.

        Every frame attends to `lengths` [F] rows (default: the config's `text_len`, 512); rows beyond T are zero
        and alike, so one row is projected for all of them. It then counts by a bias or, with `expand`, is repeated:
        the same sum, and what flash attention on a GPU (the default there) wants, which takes no bias.
        """
        embedded = self._embed(text, lengths, expand)
        pairs = [block.text_kv(embedded) for block in cast("Iterable[WanBlock]", self.blocks)]
        return TextContext(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), embedded.bias)

    def _embed(self, text: Tensor, lengths: Tensor | None = None, expand: bool | None = None) -> EmbeddedText:
        batch, frames, rows, _ = text.shape
        total = self.config.text_len
        if lengths is None and rows > total:
            raise ValueError(f"{rows} text rows, the model attends to {total}")
        expand = text.device.type != "cpu" if expand is None else expand
        padded = F.pad(text.flatten(0, 1), (0, 0, 0, 1))  # [B*F, T + 1, E], the last row stands for all padding
        embedded = self.text_embedding(padded.to(self.patch_embedding.weight.dtype))
        if lengths is None and expand and rows < total:
            return EmbeddedText(embedded, total - rows, None)
        if lengths is None and expand:
            return EmbeddedText(embedded[:, :-1], 1, None)
        bias = self._row_counts(batch, frames, rows, lengths, text.device).log()[:, None, None]
        # GPUs want the queries' dtype
        return EmbeddedText(embedded, 1, bias if text.device.type == "cpu" else bias.to(embedded.dtype))

    def _row_counts(self, batch: int, frames: int, rows: int, lengths: Tensor | None, device) -> Tensor:
        """Return how often each of T + 1 rows counts, [B*F, T + 1]."""
        if lengths is None:
            lengths = torch.full((frames,), self.config.text_len, device=device)
        lengths = lengths.to(device)[:, None]
        real = (torch.arange(rows, device=device)[None] < lengths).float()
        padding = (lengths - rows).clamp(min=0).float()
        return torch.cat([real, padding], dim=1).repeat(batch, 1)

    def _run(self, latents, timesteps, text, views, stride, past, keep) -> tuple[Tensor, FrameKV | None]:
        batch, _, frames, height, width = latents.shape
        dtype = self.patch_embedding.weight.dtype
        patch_h, patch_w = self.config.patch_size[1:]
        rows, columns = height // patch_h, width // patch_w
        views = views or sequence_views(frames)
        if len(views) != frames or (past is not None and (frames != 1 or len(views[0].frames) != len(past))):
            raise ValueError(f"{len(views)} views for {frames} frames and the K/V of {len(past or ())}")
        text = text if isinstance(text, TextContext) else self._embed(text)

        # a sequence is embedded frame by frame, because the patch is one frame deep
        x = self.patch_embedding(latents.to(dtype))  # [B, W, F, h/2, w/2]
        x = x.flatten(3).permute(0, 2, 3, 1).contiguous()  # [B, F, L, W]
        with torch.autocast(x.device.type, enabled=False):  # times must not be rounded, as in Wan's own code
            time = sinusoid(timesteps, self.config.freq_dim).to(dtype)  # [B, F, 256]
            time = self.time_embedding(time)  # [B, F, W]
            modulation = self.time_projection(time).unflatten(-1, (6, -1)).float()  # [B, F, 6, W]

        positions = Positions.of(self.config.head_dim, rows, columns, views, stride, past is not None, x.device)
        keys, values = [], []
        for index, block in enumerate(self.blocks):
            seen = [(kv.keys[index], kv.values[index]) for kv in past or ()]
            layer_text = (text.keys[index], text.values[index]) if isinstance(text, TextContext) else text
            arguments = (x, modulation, layer_text, text.bias, positions, seen)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, key, value = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, key, value = block(*arguments)
            if keep:
                keys.append(key[:, 0])
                values.append(value[:, 0])
        x = self.head(x, time)  # [B, F, L, C*4]
        x = x.unflatten(2, (rows, columns)).unflatten(-1, (patch_h, patch_w, -1))  # [B, F, h/2, w/2, 2, 2, C]
        flow = x.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)
        return flow, FrameKV(tuple(keys), tuple(values)) if keep else None


@dataclass(frozen=True)
class Positions:
    """Hold the rotary tables of one forward.

    Each frame is rotated to its own slot once (`base`); a view that gives a visible frame another slot rotates its
    keys by the difference. Cached keys, and the single frame that attends to them, have temporal position 0.
    """

    cos: Tensor  # [F, L, D/2]
    sin: Tensor
    views: tuple[FrameView, ...]
    base: tuple[int, ...]
    cached: bool
    rotations: dict[int, tuple[Tensor, Tensor]]  # distance in slots -> temporal cos, sin [time/2]

    @classmethod
    def of(cls, head_dim, rows, columns, views, stride, cached, device) -> Positions:
        cos, sin = spatial_tables(head_dim, rows, columns, device)
        base = (0,) if cached else tuple(view.slot for view in views)
        time_cos, time_sin = temporal_tables(head_dim, torch.tensor(base, device=device) * stride)
        pairs = time_cos.shape[-1]
        cos, sin = cos.repeat(len(base), 1, 1), sin.repeat(len(base), 1, 1)
        cos[..., :pairs], sin[..., :pairs] = time_cos[:, None], time_sin[:, None]
        distances = {
            cls._distance(view, index, number, base, cached)
            for number, view in enumerate(views)
            for index in range(len(view.frames))
        }
        tables = {
            distance: temporal_tables(head_dim, torch.tensor([distance * stride], device=device))
            for distance in distances
            if distance
        }
        return cls(cos, sin, views, base, cached, {distance: (c[0], s[0]) for distance, (c, s) in tables.items()})

    @staticmethod
    def _distance(view: FrameView, index: int, number: int, base: tuple[int, ...], cached: bool) -> int:
        """Return by how many slots the keys of a visible frame still have to be rotated."""
        rotated = 0 if cached else base[view.frames[index]] - base[number]
        return view.distances[index] - rotated

    def rotate_key(self, key: Tensor, number: int, index: int) -> Tensor:
        """Rotate keys [B, L, H, D] of the index-th frame that frame `number` sees to the slot it has in that view."""
        distance = self._distance(self.views[number], index, number, self.base, self.cached)
        return rotate(key, *self.rotations[distance]) if distance else key


class WanBlock(nn.Module):
    """Apply self-attention, cross-attention to the frame's text and feed-forward; six modulation vectors per frame."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.self_attn = CausalSelfAttention(config)
        self.norm3 = nn.LayerNorm(width, eps)
        self.cross_attn = TextCrossAttention(config)
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, width)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x, modulation, text, text_bias, positions: Positions, past):
        """Map x [B, F, L, W] to x and the frames' own keys and values [B, F, L, H, D].

        `text` is an `EmbeddedText`, or this layer's K/V that `text_kv` made of one.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation.float()).unbind(2)  # [B, F, W]
        y, key, value = self.self_attn(_modulate(self.norm1(x), shift1, scale1), positions, past)
        x = (x + y * gate1[:, :, None]).to(x.dtype)
        text_key, text_value = text.key_value(self.cross_attn) if isinstance(text, EmbeddedText) else text
        x = x + self.cross_attn(self.norm3(x), text_key, text_value, text_bias)
        y = self.ffn(_modulate(self.norm2(x), shift2, scale2))
        return (x + y * gate2[:, :, None]).to(x.dtype), key, value

    def text_kv(self, text: EmbeddedText) -> tuple[Tensor, Tensor]:
        """Return this layer's keys and values of the texts [B*F, T', H, D]."""
        return text.key_value(self.cross_attn)


class _Projections(nn.Module):
    """Hold q, k, v, o and the RMS norms of q and k over the whole width, before it is split into heads."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class CausalSelfAttention(_Projections):
    def forward(self, x: Tensor, positions: Positions, past: list[tuple[Tensor, Tensor]]):
        """Attend over x [B, F, L, W]; `past` are the cached pairs [1, L, H, D] that a single frame sees."""
        cos, sin = positions.cos[None, :, :, None], positions.sin[None, :, :, None]  # [1, F, L, 1, D/2]
        query = rotate(self.heads(self.norm_q(self.q(x))), cos, sin)  # [B, F, L, H, D]
        key = rotate(self.heads(self.norm_k(self.k(x))), cos, sin)
        value = self.heads(self.v(x))
        out = [
            _attention(query[:, number], *self._visible(number, key, value, positions, past))
            for number in range(x.shape[1])
        ]
        return self.o(torch.stack(out, dim=1).flatten(3)), key, value

    def _visible(self, number: int, key: Tensor, value: Tensor, positions: Positions, past) -> tuple[Tensor, Tensor]:
        """Gather keys and values [B, n*L, H, D] of all frames that frame `number` sees, itself last."""
        view = positions.views[number]
        if not past:
            past = [(key[:, frame], value[:, frame]) for frame in view.frames]
        keys = [positions.rotate_key(k.to(key), number, index) for index, (k, _) in enumerate(past)]
        keys = [*(k.expand(key.shape[0], -1, -1, -1) for k in keys), key[:, number]]
        values = [*(v.to(value).expand(key.shape[0], -1, -1, -1) for _, v in past), value[:, number]]
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)


class TextCrossAttention(_Projections):
    def key_value(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map embedded text [B*F, T, W] to keys and values [B*F, T, H, D]."""
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query = self.heads(self.norm_q(self.q(x))).flatten(0, 1)  # [B*F, L, H, D]
        # one text may serve a batch; contiguous, because not every fused kernel reads a row twice
        key, value = (rows.expand(len(query), -1, -1, -1).contiguous() for rows in (key, value))
        return self.o(_attention(query, key, value, bias).flatten(2)).unflatten(0, x.shape[:2])


class Head(nn.Module):
    """Apply the last norm, modulated from the un-projected time embedding, and the map to patches."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x [B, F, L, W] with time [B, F, W] to patches [B, F, L, C*4]."""
        shift, scale = (self.modulation.float() + time[:, :, None].float()).unbind(2)
        return self.head(_modulate(self.norm(x), shift, scale).to(x.dtype))


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding [..., dim] of times in 0..1000, cosines first; float64 inside, float32 out."""
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Modulate x [B, F, L, W] by shift and scale [B, F, W], in float32 and back."""
    return (x * (1 + scale[:, :, None]) + shift[:, :, None]).to(x.dtype)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention over [B, L, H, D]."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias
    )
    return out.transpose(1, 2)
