"""The pipeline on the artist's own MODEL, CLIP and VAE, and what the pack keeps between two runs.

`HostPipeline` has the verbs of `AnchorEditPipeline` and all of its arithmetic; only the three networks are the
host's. A part that a verb does not use may be left out: starting a session needs no MODEL, looking at it no CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...anchoredit_model.memory.anchor_memory import AnchorMemory
from ...anchoredit_model.memory.kv_cache import KVCacheManager
from ...anchoredit_model.memory.kv_store import KVStore
from ...anchoredit_model.pipeline import AnchorEditPipeline
from ..host.model import HostModel, HostVAE, block_budget, on_read
from ..host.model_identity import Serials
from ..host.text import HostText
from .decode_cache import Images
from .out_of_memory import make_somehow

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One per process, held by the extension: keys and values, the numbers that name their models, last images."""

    store: KVStore = field(default_factory=lambda: KVStore(block_budget()))
    serials: Serials = field(default_factory=Serials)
    images: Images = field(default_factory=Images)


class HostPipeline(AnchorEditPipeline):
    """`start` needs vae and clip, `turn` all three, `image` the vae."""

    def __init__(self, runtime: Runtime, vae=None, clip=None, model=None):
        self.transformer = None if model is None else HostModel(model, runtime.serials, runtime.store)
        self.vae = None if vae is None else HostVAE(vae)
        self.text_encoder = None if clip is None else HostText(clip)
        self.edit = self.transformer.edit if self.transformer else self.vae.edit
        self.store, self.images = runtime.store, runtime.images
        self.remarks: list[str] = []  # what an artist should know about the turn that was made
        if self.transformer:
            reader = partial(
                KVCacheManager,
                self.transformer.read,
                self.transformer.identity,
                self.edit,
                device=self.device,
                share=self.transformer.share,
                on_read=on_read,
            )
            self.reader, self._null_reader = reader(store=self.store), reader(store=KVStore(budget=0))

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def turn(self, memory: AnchorMemory, *arguments, **options) -> AnchorMemory:
        return self._made(memory, super().turn, *arguments, **options)

    def variants(self, memory: AnchorMemory, *arguments, at_once: bool = True, **options) -> tuple[AnchorMemory, ...]:
        verb = partial(super().variants, at_once=at_once)
        if not at_once:
            return self._made(memory, verb, *arguments, **options)
        with self.transformer.running():  # a batch that is too large is the caller's to take apart
            return verb(memory, *arguments, **options)

    def _made(self, memory: AnchorMemory, verb: Callable[..., T], *arguments, **options) -> T:
        """What `verb` makes, by another policy if the device runs out of memory."""

        def make(memory: AnchorMemory) -> T:
            with self.transformer.running():
                return verb(memory, *arguments, **options)

        made = make_somehow(make, memory, self.store, self.remarks.append)
        if rounding := self.transformer.rounding:
            self.remarks.append(f"Keys and values are rounded to {memory.policy.kv_dtype}: {rounding:.1%} error (rms).")
        return made

    def image(self, memory, turn: int | None = None, before: Tensor | None = None) -> Tensor:
        entry = memory.rewind(memory.last if turn is None else turn).turns[-1]
        if entry.mask is None:
            return super().image(memory, turn, before)
        self.check_vae(memory)
        image = self.images.get(entry, self.vae.vae)
        if image is None:
            image = super().image(memory, turn, before)
            self.images.put(entry, self.vae.vae, image)
        return image

    def _predictor(self, text: Tensor, view, blocks):
        return self.transformer.flow(text, view, blocks)

    def _latent_space(self) -> str:
        return self.vae.latent_space
