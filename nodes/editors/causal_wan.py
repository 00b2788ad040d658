"""Editing with K/V memory in the artist's own Wan 2.1 MODEL.

The pipeline is the one that runs without ComfyUI; backbone, VAE and text encoder are the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...anchoredit_model.config import KVCacheConfig
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.geometry import fit
from ...anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from ...anchoredit_model.memory.kv_size import format_bytes, kv_size
from ...anchoredit_model.pipeline import AnchorEditPipeline, backbone_kv_cache, check_backbone
from ...anchoredit_model.sampling import describe_sampling, schedule_of, step_count, with_steps
from ..host.latent_space import SPACES
from ..host.sampling.memory_wrapper import without_memory
from ..host.sampling.turn_sampler import TurnNoise, turn_sampler
from ..host.text import HostTextEncoder, text_rows
from ..host.ui import on_encode, on_step
from ..host.vae import HostVAE
from ..host.vram import is_out_of_memory, offload_kv_cache
from ..host.wan.attention import MemoryAttention
from ..host.wan.memory_patch import with_memory
from ..host.wan.model import WanBackbone
from .base import MASK_KEY, NULL_EDIT, Runtime, SamplerInputs, TurnSettings
from .out_of_memory import run_with_oom_fallback
from .session import MemorySettings, Networks, Session

T = TypeVar("T")

_SPACE = SPACES["wan21"]
_NOT_TRAINED = "This MODEL is not known to be trained to edit: plain Wan makes a new image instead of an edit."


class CausalWanEditor:
    """Edit with the K/V of earlier turns in a Wan 2.1 text-to-video MODEL."""

    def __init__(self, runtime: Runtime, networks: Networks, notify: Callable[[str], None]):
        networks.require("model")
        self.runtime = runtime
        self.networks = replace(networks, model=without_memory(networks.model))
        self.notify = notify
        self.backbone = WanBackbone(networks.model, runtime.object_ids, runtime.store)

    @cached_property
    def pipeline(self) -> AnchorEditPipeline:
        """Return the pipeline of all three networks."""
        self.networks.require("clip", "vae")
        vae, text_encoder = HostVAE(self.networks.vae, _SPACE), HostTextEncoder(self.networks.clip)
        return AnchorEditPipeline(self.backbone, vae, text_encoder, self.runtime.store, on_encode)

    def start(self, image: Tensor, settings: MemorySettings | None) -> Session:
        """Start a session from a source image [3, H, W]."""
        policy, kv_cache = (settings.policy, settings.kv_cache) if settings else (None, None)
        memory = self.pipeline.start(image, policy, kv_cache=kv_cache)
        self.backbone.check_text(memory.turns[0].text)
        return Session(memory, (self.networks,))

    def turn(self, session: Session, instruction: str, seed: int, settings: TurnSettings) -> Session:
        """Make the next turn."""
        _check_prompts(session.memory)
        options = self._options(instruction, settings)
        pipeline = self.pipeline
        return self._run(
            session, lambda kv_cache: pipeline.turn(session.memory, instruction, seed, **options, kv_cache=kv_cache)
        )

    def variations(
        self, session: Session, instruction: str, seed: int, count: int, settings: TurnSettings
    ) -> tuple[Session, ...]:
        """Make `count` candidates for the next turn, as one batch where memory allows."""
        _check_prompts(session.memory)
        options = self._options(instruction, settings)
        pipeline = self.pipeline

        def make(kv_cache: KVCacheConfig, batched: bool) -> tuple[AnchorMemory, ...]:
            memory = session.memory
            return pipeline.variations(memory, instruction, seed, count, **options, kv_cache=kv_cache, batched=batched)

        memories = ()
        if count > 1:
            try:
                with self.backbone.loaded():
                    memories = make(session.memory.kv_cache, batched=True)
                self._note_quantization(session.memory)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        if not memories:  # not in the handler, which would keep what the batch has taken
            if count > 1:
                self.notify(f"Memory does not hold {count} images at once: they were sampled one after the other.")
                offload_kv_cache(self.runtime.store)
            memories = self._fallback(session.memory, lambda kv_cache: make(kv_cache, batched=False))
        return tuple(session.extended(memory, self.networks) for memory in memories)

    def apply_memory(
        self, session: Session, conditioning: Any, seed: int, mask: Tensor | None, errors: Callable
    ) -> SamplerInputs:
        """Prepare the next turn for the host's samplers."""
        memory = session.memory
        _check_prompts(memory)
        check_backbone(self.backbone.config, memory)
        text = self.backbone.check_text(text_rows(conditioning))
        noise, latent = TurnNoise(seed, len(memory), _SPACE), _SPACE.empty_latent(memory.turns[-1].latent.shape)
        constraint = None if mask is None else memory.mask_constraint(mask)
        edit = self.backbone.edit
        return SamplerInputs(
            model=with_memory(self.networks.model, _SeenMemory(self.runtime, memory, text), errors, constraint),
            latent=latent if mask is None else {**latent, MASK_KEY: mask},
            noise=noise,
            sampler=turn_sampler(edit.sampler, noise),
            sigmas=Tensor(schedule_of(edit).sigmas),
        )

    def commit(
        self, session: Session, latent: dict[str, Any], conditioning: Any, instruction: str, mask: Tensor | None
    ) -> Session:
        """Add what the host's samplers made as the next turn."""
        memory = session.memory
        _check_prompts(memory)
        check_backbone(self.backbone.config, memory)
        text = self.backbone.check_text(text_rows(conditioning))
        mask = latent.get(MASK_KEY) if mask is None else mask
        x0 = _SPACE.from_latent(latent).cpu()
        if mask is not None:  # again, as the host's way out of the model's latents and back rounds
            x0 = memory.mask_constraint(mask)(x0)
        turn = Turn(x0, instruction.strip(), text.cpu(), mask=mask)
        kv_cache = backbone_kv_cache(self.backbone, self.runtime.store, on_encode)
        with self.backbone.loaded():
            return session.extended(kv_cache.commit(memory, turn), self.networks)

    def cost(self, settings: MemorySettings, size: tuple[int, int] | None) -> str:
        """Say how many bytes of K/V turns hold, and where."""
        backbone, edit, config = self.backbone, self.backbone.edit, settings.kv_cache
        height, width = size or (edit.resolution, edit.resolution)
        work = fit(height, width, edit.resolution, edit.resolution_step, edit.max_aspect_ratio)
        itemsize = backbone.itemsize if config.dtype == "auto" else getattr(torch, config.dtype).itemsize
        kv = kv_size(backbone.config, settings.policy, work.work_height, work.work_width, itemsize)
        crowded = config.device == "auto" and kv.visible > backbone.max_device_bytes
        where = "system RAM" if config.device == "cpu" or crowded else "VRAM"
        weights = format_bytes(backbone.patcher.model_size())
        return f"At {work.work_width}x{work.work_height}: {kv.describe(where)}, beside {weights} of weights."

    def _options(self, instruction: str, settings: TurnSettings) -> dict[str, Any]:
        """Return the options of the pipeline's methods; note what an artist should know before the turn is made."""
        edit = with_steps(self.backbone.edit, settings.steps)
        if not instruction.strip():
            self.notify(NULL_EDIT)
        if not self.backbone.trained:
            sampled = replace(edit, cfg=settings.cfg or edit.cfg)
            self.notify(f"{_NOT_TRAINED} Sampled with {describe_sampling(sampled)}.")
        show = on_step(self.backbone.patcher, step_count(edit), _SPACE)
        return {"steps": settings.steps, "cfg": settings.cfg, "mask": settings.mask, "on_step": show}

    def _run(self, session: Session, make: Callable[[KVCacheConfig], AnchorMemory]) -> Session:
        return session.extended(self._fallback(session.memory, make), self.networks)

    def _fallback(self, memory: AnchorMemory, make: Callable[[KVCacheConfig], T]) -> T:
        def attempt(kv_cache: KVCacheConfig) -> T:
            with self.backbone.loaded():
                return make(kv_cache)

        made = run_with_oom_fallback(attempt, memory.kv_cache, self.runtime.store, self.notify)
        self._note_quantization(memory)
        return made

    def _note_quantization(self, memory: AnchorMemory) -> None:
        if error := self.backbone.quantization_error:
            self.notify(f"Keys and values are rounded to {memory.kv_cache.dtype}: {error:.1%} relative error (RMS).")


def _check_prompts(memory: AnchorMemory) -> None:
    """Refuse turns of an editor that keeps no prompt embeddings: their K/V depend on them."""
    number = next((number for number, turn in enumerate(memory.turns) if not len(turn.text)), None)
    if number is not None:
        raise AnchorEditError(
            f"turn {number} of the session is of another editor, which keeps no prompt embeddings for Wan 2.1",
            "Continue with that editor, or start a new session from the image",
        )


@dataclass(frozen=True)
class _SeenMemory:
    """What a sampled MODEL sees: `memory`, as the turn with the embedding `text` [T, E] does."""

    runtime: Runtime
    memory: AnchorMemory
    text: Tensor

    def __call__(self, model) -> MemoryAttention:
        """Return the attention for the MODEL that samples; frames without K/V are encoded now."""
        backbone = WanBackbone(model, self.runtime.object_ids, self.runtime.store)
        kv_cache = backbone_kv_cache(backbone, self.runtime.store, on_encode)
        with backbone.loaded():
            view, past = kv_cache.gather(self.memory, self.text)
        return MemoryAttention(view, past, backbone.edit.temporal_stride)
