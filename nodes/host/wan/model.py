"""The artist's own Wan 2.1 MODEL as the backbone of a pipeline: native forwards that see the K/V of earlier turns.

Legend: B batch, C latent channels, h w latent size, T text rows, E text width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from torch import Tensor

from ....anchoredit_model.checkpoint.validation import LATENT_CHANNELS
from ....anchoredit_model.config import TransformerConfig
from ....anchoredit_model.errors import AnchorEditError
from ....anchoredit_model.memory.frame_kv import FrameKV
from ....anchoredit_model.memory.kv_store import KVStore
from ....anchoredit_model.memory.visibility import FrameView
from ....anchoredit_model.samplers import Denoiser
from ..edit_metadata import ATTACHMENT_KEY, edit_metadata
from ..object_ids import ObjectIds
from ..sampling.memory_wrapper import without_memory
from ..vram import kv_vram_limit
from .attention import MemoryAttention

_Wrappers = comfy.patcher_extension.WrappersMP


class WanBackbone:
    """Run the artist's MODEL, however it was loaded and patched; constructed by every node that runs it."""

    def __init__(self, patcher, object_ids: ObjectIds, store: KVStore):
        network = text_to_video_network(patcher)
        self.patcher = patcher = without_memory(patcher)
        _offload_kv_with(patcher, store)
        metadata = edit_metadata(patcher)
        self.edit, self.trained = metadata.edit, metadata.trained
        self.config = TransformerConfig(
            dim=network.dim,
            ffn_dim=network.ffn_dim,
            num_heads=network.num_heads,
            num_layers=len(network.blocks),
            text_dim=network.text_dim,
            text_len=network.text_len,
            in_channels=network.in_dim,
            out_channels=network.out_dim,
            patch_size=tuple(network.patch_size),
        )
        dependencies = [
            object_ids.of(patcher.model),
            str(patcher.patches_uuid),
            str([patcher.model.get_dtype(), patcher.model.manual_cast_dtype]),
            str(patcher.load_device),
            object_ids.describe([patcher.model_options, patcher.object_patches, patcher.wrappers]),
        ]
        self.fingerprint = json.dumps(dependencies)
        self.max_device_bytes = kv_vram_limit(patcher, store)
        self.quantization_error = 0.0  # of the K/V that the last denoiser saw

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def itemsize(self) -> int:
        """Return the bytes per number of the K/V that it computes."""
        model = self.patcher.model
        return (model.manual_cast_dtype or model.get_dtype()).itemsize

    def parameters(self) -> Iterator[Tensor]:
        return self.patcher.model.diffusion_model.parameters()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Run forwards inside this; models that the host has offloaded meanwhile come back by themselves."""
        self.patcher.pre_run()
        try:
            yield
        finally:
            self.patcher.cleanup()

    def denoiser(self, text: Tensor, view: FrameView, past: tuple[FrameKV, ...]) -> Denoiser:
        """Return the denoiser of one turn: (x [B, C, h, w], time 0..1000) -> flow [B, C, h, w]."""
        context, attention = self._context(text), MemoryAttention(view, past, self.edit.temporal_stride)
        self.quantization_error = max((kv.quantization_error for kv in past), default=0.0)
        return lambda x, time: self._forward(x, time, context, attention)

    def encode_frame(
        self, latent: Tensor, text: Tensor, rows: int | None, view: FrameView, past: tuple[FrameKV, ...]
    ) -> FrameKV:
        """Encode one clean frame [C, h, w] at t = 0 and return its K/V; `rows` of the text count (None: all)."""
        context = self._context(text, rows)
        attention = MemoryAttention(view, past, self.edit.temporal_stride, capture=True)
        self._forward(latent.to(self.device)[None], 0.0, context, attention)
        return attention.captured

    def _forward(self, x: Tensor, time: float, context: Tensor, attention: MemoryAttention) -> Tensor:
        noisy = x[:, :, None]  # [B, C, 1, h, w]
        required = self.patcher.model.memory_required(list(noisy.shape)) + attention.nbytes
        comfy.model_management.load_models_gpu([self.patcher], memory_required=required)
        sigma = torch.full((len(x),), time / 1000, device=x.device)
        conditions = {
            "c_crossattn": context.expand(len(x), -1, -1),
            "transformer_options": self._options(sigma, attention),
        }
        apply, around = self.patcher.model.apply_model, self.patcher.model_options.get("model_function_wrapper")
        if around is None:
            clean = apply(noisy, sigma, **conditions)
        else:
            clean = around(apply, {"input": noisy, "timestep": sigma, "c": conditions, "cond_or_uncond": [0]})
        return ((noisy - clean) / sigma.view(-1, 1, 1, 1, 1))[:, :, 0] if time else torch.zeros_like(x)

    def _options(self, sigma: Tensor, attention: MemoryAttention) -> dict[str, Any]:
        """Return what the host's samplers hand to the network, and our wrapper: the last one, so around all others."""
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)["transformer_options"]
        for kind, present in (("wrappers", self.patcher.wrappers), ("callbacks", self.patcher.callbacks)):
            comfy.patcher_extension.merge_nested_dicts(options.setdefault(kind, {}), present, copy_dict1=False)
        comfy.patcher_extension.add_wrapper_with_key(_Wrappers.DIFFUSION_MODEL, ATTACHMENT_KEY, attention, options)
        return options | {"sigmas": sigma, "cond_or_uncond": [0]}

    def check_text(self, text: Tensor) -> Tensor:
        """Return the same text [T, E], if the network takes its width."""
        if text.shape[-1] != self.config.text_dim:
            raise AnchorEditError(
                f"the CLIP's text must be {self.config.text_dim} wide for this MODEL, got {text.shape[-1]}",
                "Load the text encoder that belongs to the model (umT5-XXL for Wan 2.1)",
            )
        return text

    def _context(self, text: Tensor, rows: int | None = None) -> Tensor:
        """Pad text [T, E] as the network takes it, [1, 512, E], or to its first `rows`."""
        self.check_text(text)
        padded = F.pad(text, (0, 0, 0, max(0, self.config.text_len - len(text))))
        return padded[None, : rows or self.config.text_len].to(self.device)


def _offload_kv_with(patcher, store: KVStore) -> None:
    """Move K/V to system RAM with the model they belong to, when the host takes it off the device.

    Not when it swaps the model for a clone, which it does without unpatching.
    """

    def offload(unloaded, unpatch_all: bool) -> None:
        if unpatch_all:
            store.offload(unloaded.load_device)

    kind = comfy.patcher_extension.CallbacksMP.ON_DETACH
    patcher.remove_callbacks_with_key(kind, ATTACHMENT_KEY)
    patcher.add_callback_with_key(kind, ATTACHMENT_KEY, offload)


def text_to_video_network(patcher) -> comfy.ldm.wan.model.WanModel:
    """Return the network of a MODEL; refuse all but Wan 2.1 text-to-video."""
    network = patcher.model.diffusion_model
    if type(network) is not comfy.ldm.wan.model.WanModel or network.model_type != "t2v":
        what = f"{type(network).__name__} {getattr(network, 'model_type', '')}".strip()
        raise AnchorEditError(f"the MODEL is {what}, which has no causal K/V memory", "Load Wan 2.1 text-to-video")
    if network.in_dim != LATENT_CHANNELS:
        raise AnchorEditError(
            f"the MODEL takes {network.in_dim} channels where text-to-video takes {LATENT_CHANNELS}",
            "Load Wan 2.1 text-to-video",
        )
    return network
