"""What a pipeline needs of the network that predicts the flow, and our transformer as one.

The host's own network is another backbone of the same pipeline: `nodes/host/wan/model.py`.

Legend: B batch, C latent channels, h w latent size, T text rows, E text width.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..checkpoint.fingerprint import fingerprint
from ..config import EditConfig, TransformerConfig
from ..memory.frame_kv import FrameKV
from ..memory.visibility import FrameView
from ..samplers import Denoiser
from .transformer import CausalWanTransformer, TextContext

_CONTEXTS = 3  # texts whose K/V are kept: the instruction's, the null prompt's, one more when recomputing


class Backbone(Protocol):
    """Predict flows and encode frames.

    fingerprint       hashes or names all that the K/V depend on: weights, patches, compute dtype
    max_device_bytes  how much K/V may take beside the weights on `device` (None: no limit)
    """

    config: TransformerConfig
    edit: EditConfig
    fingerprint: str

    @property
    def max_device_bytes(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def loaded(self) -> AbstractContextManager[None]:
        """Keep the network ready inside a `with` block."""
        ...

    def denoiser(self, text: Tensor, view: FrameView, past: tuple[FrameKV, ...]) -> Denoiser:
        """Return the denoiser of one turn with prompt embedding `text` [T, E] that sees the K/V `past`."""
        ...

    def encode_frame(
        self, latent: Tensor, text: Tensor, rows: int | None, view: FrameView, past: tuple[FrameKV, ...]
    ) -> FrameKV:
        """Encode one clean frame [C, h, w] and return its K/V; `rows` of the text count (None: all)."""
        ...


class TransformerBackbone:
    """Run a `CausalWanTransformer`.

    K/V belong to the weights as they are at construction: after changing them (a LoRA, say), make a new backbone.
    """

    max_device_bytes = None

    def __init__(self, transformer: CausalWanTransformer, edit: EditConfig | None = None):
        self.transformer = transformer.eval()
        self.config = transformer.config
        self.edit = edit or EditConfig()
        weight = next(transformer.parameters())
        sizes = json.dumps(self.config.to_json())  # the same weights may be cut into other heads
        self.fingerprint = f"{fingerprint(transformer)} {sizes} {weight.dtype} {weight.device.type}"
        self._contexts: deque[tuple[Tensor, int | None, TextContext]] = deque(maxlen=_CONTEXTS)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Do nothing: the network stays where it is."""
        yield

    def denoiser(self, text: Tensor, view: FrameView, past: tuple[FrameKV, ...]) -> Denoiser:
        """Return the denoiser of one turn: (x [B, C, h, w], time 0..1000) -> flow [B, C, h, w] float32."""
        context = self._context(text)

        def denoiser(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(x), 1), time, device=x.device)
            flow = self.transformer(x[:, :, None], times, context, (view,), self.edit.temporal_stride, past)
            return flow[:, :, 0].float()

        return denoiser

    def encode_frame(
        self, latent: Tensor, text: Tensor, rows: int | None, view: FrameView, past: tuple[FrameKV, ...]
    ) -> FrameKV:
        """Encode one clean frame [C, h, w] and return its K/V; `rows` of the text count (None: all)."""
        frame = latent.to(self.device)[None, :, None]
        context = self._context(text, rows)
        kv, _ = self.transformer.encode_frame(frame, context, view, self.edit.temporal_stride, past)
        return kv

    def _context(self, text: Tensor, rows: int | None = None) -> TextContext:
        """Project a text, once for the steps of a turn and its commit."""
        for known, known_rows, context in self._contexts:
            if known_rows == rows and torch.equal(known, text):
                return context
        lengths = None if rows is None else torch.tensor([rows])
        context = self.transformer.embed_text(text.to(self.device)[None, None], lengths)
        self._contexts.append((text, rows, context))
        return context
