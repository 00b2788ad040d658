"""Editing one image over many turns.

    pipeline = AnchorEditPipeline.from_pretrained("anchoredit_model/tiny")
    memory = pipeline.start(load_image("sample.png"))
    memory = pipeline.turn(memory, "make it blue", seed=7)
    image = pipeline.image(memory)

The methods are named as in diffusers. A memory is a value: two turns from one memory are two branches.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from . import TINY
from .config import EditConfig, KVCacheConfig, MemoryPolicy, TransformerConfig
from .decoding import ImageCodec, check_vae, decode_turn
from .errors import AnchorEditError
from .geometry import fit
from .images import to_tensor
from .memory.anchor_memory import AnchorMemory, Turn
from .memory.kv_cache import KVCacheManager, OnEncode
from .memory.kv_store import KVStore
from .networks.backbone import Backbone
from .noise import variation_seeds
from .samplers import SAMPLERS, Denoiser, OnStep, guided
from .sampling import sample, schedule_of, with_steps


class PromptEncoder(Protocol):
    """Map prompts to their valid rows, each [T, E]."""

    def encode(self, texts: list[str]) -> list[Tensor]: ...


@dataclass(frozen=True)
class AnchorEditOutput:
    """Hold images [3, H, W] in 0..1, the source first, and the memory after the last one."""

    images: list[Tensor]
    memory: AnchorMemory


class AnchorEditPipeline:
    """Edit with a backbone, a VAE and a text encoder.

    `store` holds the K/V of sessions; by default just those that the memory in use sees. `on_encode` hears of frames
    that have to be encoded before a turn.
    """

    def __init__(
        self,
        backbone: Backbone,
        vae: ImageCodec,
        text_encoder: PromptEncoder,
        store: KVStore | None = None,
        on_encode: OnEncode | None = None,
    ):
        self.backbone = backbone
        self.vae = vae
        self.text_encoder = text_encoder
        self.store = KVStore(budget=0) if store is None else store
        self.kv_cache = backbone_kv_cache(backbone, self.store, on_encode)
        self._negative_kv_cache = backbone_kv_cache(backbone, KVStore(budget=0), on_encode)
        self._progress_bar: dict = {}

    # ---------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = TINY,
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        store: KVStore | None = None,
    ) -> AnchorEditPipeline:
        """Load a local model: a folder with `transformer`, `vae` and `text_encoder`, or a transformer's weights.

        Weights alone, a file or a folder, need `vae` and `text_encoder` beside them as diffusers stores them; those
        of the bundled model's size get the bundled ones. Nothing is downloaded.
        """
        from .pretrained import load_parts

        return cls(*load_parts(path, torch_dtype, device), store)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads; safetensors only."""
        from .pretrained import save_parts

        save_parts(folder, (self.backbone, self.vae, self.text_encoder), dtype)

    def to(self, device: str | torch.device) -> AnchorEditPipeline:
        """Return a pipeline whose parts were moved to a device; K/V are computed again there."""
        from .pretrained import move_parts

        parts = move_parts((self.backbone, self.vae, self.text_encoder), device)
        return type(self)(*parts, self.store)

    # ---------------------------------------------------------------- editing

    @property
    def edit(self) -> EditConfig:
        """Return how the backbone was trained to edit."""
        return self.backbone.edit

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def default_policy(self) -> MemoryPolicy:
        """Show the anchor and as many recent turns as the model was trained to see."""
        return MemoryPolicy(anchor_frames=1, window=max(1, self.edit.max_turns - 2))

    def set_progress_bar_config(self, **options) -> None:
        """Set options for tqdm, e.g. `disable=True`."""
        self._progress_bar = options

    @torch.no_grad()
    def start(
        self,
        image: Tensor | Image.Image,
        policy: MemoryPolicy | None = None,
        resolution: int | None = None,
        kv_cache: KVCacheConfig | None = None,
    ) -> AnchorMemory:
        """Start a session from a source image, [3, H, W] in 0..1 or a Pillow image.

        It is edited at the nearest size that the model knows; `resolution` replaces the side in pixels of the square
        whose area the model was trained at.
        """
        image = to_tensor(image) if isinstance(image, Image.Image) else image
        if image.ndim != 3 or image.shape[0] != 3:
            raise AnchorEditError(f"image must be [3, height, width], got {list(image.shape)}", "Give one RGB image")
        height, width = image.shape[-2:]
        resolution = self.edit.resolution if resolution is None else resolution
        geometry = fit(height, width, resolution, self.edit.resolution_step, self.edit.max_aspect_ratio)
        latent = self.vae.encode(geometry.to_work(image[None]))[0]
        (null_text,) = self.text_encoder.encode([""])
        policy = policy or self.default_policy
        return AnchorMemory.start(latent, null_text, image, geometry, policy, kv_cache, self.vae.latent_space)

    @torch.no_grad()
    def turn(
        self,
        memory: AnchorMemory,
        instruction: str,
        seed: int = 0,
        steps: int | None = None,
        cfg: float | None = None,
        mask: Tensor | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
        kv_cache: KVCacheConfig | None = None,
    ) -> AnchorMemory:
        """Return the memory with one more turn; `memory` itself stays.

        An empty instruction is a null edit: the image is generated again as it is. `mask` [1, H, W] at the input's
        size limits the edit to where it is above 0. steps, cfg and sampler ("renoise" or "euler") are the
        checkpoint's if not given. `kv_cache` replaces the session's for this run and is not kept.
        """
        (turn,) = self._sample_turns(memory, instruction, [seed], steps, cfg, mask, sampler, on_step, kv_cache)
        return self.kv_cache.commit(memory, turn, kv_cache)

    @torch.no_grad()
    def variations(
        self,
        memory: AnchorMemory,
        instruction: str,
        seed: int = 0,
        count: int = 4,
        steps: int | None = None,
        cfg: float | None = None,
        mask: Tensor | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
        kv_cache: KVCacheConfig | None = None,
        batched: bool = True,
    ) -> tuple[AnchorMemory, ...]:
        """Return `count` candidates for the next turn, each a memory to continue with; other arguments as in `turn`.

        The first one is what `turn` gives for the seed, up to rounding, the others have the seeds of
        `variation_seeds`; each names its own. They are sampled as one batch, or with `batched` False one after the
        other, which takes less memory. A candidate's K/V are computed when a turn continues from it. `on_step` is shown
        the first of a batch.
        """
        seeds = variation_seeds(operator.index(seed), operator.index(count))
        batches = [seeds] if batched else [[each] for each in seeds]
        mask = None if mask is None else mask.float().cpu()  # once: the candidates share it
        options = (steps, cfg, mask, sampler, on_step, kv_cache)
        turns = [turn for batch in batches for turn in self._sample_turns(memory, instruction, batch, *options)]
        return tuple(memory.commit(turn, self.kv_cache.fingerprint) for turn in turns)

    def _sample_turns(
        self,
        memory: AnchorMemory,
        instruction: str,
        seeds: Sequence[int],
        steps: int | None,
        cfg: float | None,
        mask: Tensor | None,
        sampler: str | None,
        on_step: OnStep | None,
        kv_cache: KVCacheConfig | None,
    ) -> list[Turn]:
        """Sample the next turn by each of the seeds, as one batch."""
        check_vae(self.vae, memory)
        check_backbone(self.backbone.config, memory)
        instruction = _checked_text(instruction.strip())
        options = {"cfg": None if cfg is None else float(cfg), "sampler": sampler}
        edit = replace(self.edit, **{name: value for name, value in options.items() if value is not None})
        edit = with_steps(edit, steps)
        seeds = [operator.index(seed) for seed in seeds]  # numpy's integers would not go into a session file
        mask = None if mask is None else mask.float().cpu()
        constraint = None if mask is None else memory.mask_constraint(mask)
        text = self.text_encoder.encode([instruction])[0].cpu()
        denoiser = self.backbone.denoiser(text, *self.kv_cache.gather(memory, text, kv_cache))
        if edit.cfg != 1:
            denoiser = guided(denoiser, self._unconditional(memory, text, kv_cache), edit.cfg)
        shape = memory.turns[-1].latent.shape
        first = None if on_step is None else lambda step, total, x0: on_step(step, total, x0[0])
        latents = sample(denoiser, shape, edit, seeds, len(memory), first, constraint, self.device)
        if not latents.isfinite().all():
            raise AnchorEditError(
                f"turn {len(memory)} came out as NaN or infinite (cfg {edit.cfg:g})",
                "Lower cfg, run the model in float32, or check the weights",
            )
        settings = {"sampler": edit.sampler, "cfg": edit.cfg}
        if SAMPLERS[edit.sampler].draws_noise_each_step:
            settings["timesteps"] = list(edit.timesteps)
        else:
            settings["num_steps"] = len(schedule_of(edit).times)
        return [
            Turn(latent, instruction, text, seed, settings, mask) for latent, seed in zip(latents, seeds, strict=True)
        ]

    @torch.no_grad()
    def image(self, memory: AnchorMemory, turn: int | None = None, before: Tensor | None = None) -> Tensor:
        """Return the image [3, H, W] of a turn (default: the newest) at the input's own size; turn 0 is the source.

        A masked turn is composited over the image `before` it, which is decoded too if it is not given.
        """
        return decode_turn(self.vae, memory, turn, before)

    def __call__(
        self,
        image: Tensor | Image.Image | AnchorMemory,
        instructions: str | Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        policy: MemoryPolicy | None = None,
        mask: Tensor | None = None,
    ) -> AnchorEditOutput:
        """Edit an image, or continue a memory, one instruction after the other; arguments as in `turn`."""
        from tqdm.auto import tqdm

        instructions = [instructions] if isinstance(instructions, str) else list(instructions)
        memory = image if isinstance(image, AnchorMemory) else self.start(image, policy)
        images = [self.image(memory)]
        for instruction in tqdm(instructions, desc="turns", **self._progress_bar):
            memory = self.turn(memory, instruction, seed, num_inference_steps, guidance_scale, mask)
            images.append(self.image(memory, before=images[-1]))
        return AnchorEditOutput(images, memory)

    def _unconditional(self, memory: AnchorMemory, text: Tensor, kv_cache: KVCacheConfig | None) -> Denoiser:
        """Return the null prompt's branch of guidance; both see the same K/V unless the checkpoint says not."""
        null = memory.turns[0].text
        if self.edit.negative_history:
            seen = self._negative_kv_cache.gather(memory.with_prompt(null), null, kv_cache)
        else:
            seen = self.kv_cache.gather(memory, text, kv_cache)
        return self.backbone.denoiser(null, *seen)


def backbone_kv_cache(backbone: Backbone, store: KVStore, on_encode: OnEncode | None = None) -> KVCacheManager:
    """Return the K/V cache of a backbone."""
    return KVCacheManager(
        backbone.encode_frame,
        backbone.fingerprint,
        backbone.edit,
        store,
        backbone.device,
        backbone.max_device_bytes,
        on_encode,
    )


def check_backbone(config: TransformerConfig, memory: AnchorMemory) -> None:
    """Refuse a session whose latents or texts a network of these sizes does not take."""
    latent = memory.turns[0].latent
    if latent.shape[0] != config.in_channels:
        raise AnchorEditError(
            f"the session's latents must have the model's {config.in_channels} channels, got {latent.shape[0]}",
            "Use the model it was started with",
        )
    if any(side % patch for side, patch in zip(latent.shape[1:], config.patch_size[1:], strict=True)):
        raise AnchorEditError(
            f"the session's latents must divide into the model's patches of {list(config.patch_size[1:])}, got "
            f"{list(latent.shape)}",
            "Start the session with this model",
        )
    widths = {turn.text.shape[-1] for turn in memory.turns} - {config.text_dim}
    if widths:
        raise AnchorEditError(
            f"the session's text must be as wide as the model's {config.text_dim}, got {widths.pop()}",
            "Use the model and text encoder it was started with",
        )


def _checked_text(instruction: str) -> str:
    """Refuse halves of characters, as a shell or JSON in a wrong encoding leaves them: no file can hold them."""
    try:
        instruction.encode()
    except UnicodeEncodeError:
        raise AnchorEditError(f"instruction {instruction!r:.80} is not valid text", "Give it in UTF-8") from None
    return instruction
