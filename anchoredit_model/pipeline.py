"""Editing without ComfyUI: an image and instructions in, a chain of edited images out.

    pipeline = AnchorEditPipeline.from_pretrained("anchoredit_model/tiny")
    memory = pipeline.start(load_image("sample.png"))
    memory = pipeline.turn(memory, "make it blue", seed=7)
    image = pipeline.image(memory)

The verbs are those of diffusers' pipelines. A memory is a value: two turns from one memory are two branches.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .atomic_write import atomic_write
from .checkpoint.layout import fingerprint, load_transformer, read_checkpoint, save_folder
from .config import EditConfig, MemoryPolicy, TransformerConfig
from .errors import AnchorEditError
from .geometry import composite, fit
from .images import to_tensor
from .memory.anchor_memory import AnchorMemory, KVCacheManager, Turn
from .memory.kv_store import KVStore
from .memory.visibility import FrameView
from .networks.text_encoder import TextEncoder
from .networks.transformer import CausalWanTransformer, FrameKV, TextContext
from .networks.vae import ImageVAE
from .sampling import OnStep, PredictFlow, guided, sample, variant_seeds, with_steps

TINY = Path(__file__).parent / "tiny"
_INDEX = "model_index.json"
_FEATHER = 1 / 64  # of the image's shorter side, inside a mask's edge
_CONTEXTS = 3  # texts whose keys and values are kept: the instruction's, the null text's, one more when replaying


@dataclass(frozen=True)
class AnchorEditOutput:
    """Images [3, H, W] in 0..1, the source first, and the memory that goes on from the last one."""

    images: list[Tensor]
    memory: AnchorMemory


class AnchorEditPipeline:
    """A transformer, a VAE and a text encoder, and the keys and values of the sessions they work on.

    `store` keeps remembered keys and values; by default just those that the memory in use sees. They belong to the
    weights as they are now: after changing them (a LoRA, say), make a new pipeline.
    """

    def __init__(
        self,
        transformer: CausalWanTransformer,
        vae: ImageVAE,
        text_encoder: TextEncoder,
        edit: EditConfig | None = None,
        store: KVStore | None = None,
    ):
        self.transformer = transformer.eval()
        self.vae = vae
        self.text_encoder = text_encoder
        self.edit = edit or EditConfig()
        self.store = KVStore(budget=0) if store is None else store
        self.fingerprint = fingerprint(transformer)
        self._progress_bar: dict = {}
        self._make_readers()

    def _make_readers(self) -> None:
        weight = next(self.transformer.parameters())
        sizes = json.dumps(self.transformer.config.to_json())  # the same weights may be cut into other heads
        identity = f"{self.fingerprint} {sizes} {weight.dtype} {weight.device.type}"
        self.reader = KVCacheManager(self._read_frame, identity, self.edit, self.store, weight.device)
        self._null_reader = KVCacheManager(self._read_frame, identity, self.edit, KVStore(budget=0), weight.device)
        self._contexts: deque[tuple[Tensor, int | None, TextContext]] = deque(maxlen=_CONTEXTS)

    # ---------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = TINY,
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        store: KVStore | None = None,
    ) -> AnchorEditPipeline:
        """A local model: a folder with `transformer`, `vae` and `text_encoder`, or a transformer's weights.

        Weights alone, a file or a folder, need `vae` and `text_encoder` beside them as diffusers stores them; those
        of the bundled model's size get the bundled ones. Nothing is downloaded.
        """
        path = Path(os.path.expanduser(path))  # Path's own expanduser raises for a user it does not know
        if not path.exists():
            raise AnchorEditError(f"model '{path}' does not exist", "Give a folder or a weights file of this machine")
        weights = path / "transformer" if (path / "transformer").is_dir() else path
        parts = path if path.is_dir() else path.parent
        if not (parts / "vae").is_dir():
            parts = _bundled_parts(weights)
        transformer, edit = load_transformer(weights, torch_dtype, device)
        vae = ImageVAE.from_pretrained(parts / "vae", device)  # float32: in bfloat16 it loses grey levels
        text_dim = transformer.config.text_dim
        text_encoder = TextEncoder.from_pretrained(parts / "text_encoder", None, device, torch_dtype, text_dim)
        return cls(transformer, vae, text_encoder, edit, store)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the folder that `from_pretrained` reads; safetensors only."""
        folder = Path(folder)
        save_folder(folder / "transformer", self.transformer, self.transformer.config, self.edit, dtype)
        self.vae.save_pretrained(folder / "vae", dtype)
        self.text_encoder.save_pretrained(folder / "text_encoder")
        index = {"_class_name": type(self).__name__, "parts": ["transformer", "vae", "text_encoder"]}
        with atomic_write(folder / _INDEX, "model index") as unfinished:
            unfinished.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def to(self, device: str | torch.device) -> AnchorEditPipeline:
        """Moves the model; keys and values are read again there."""
        for part in (self.transformer, self.vae, self.text_encoder.model):
            part.to(device)
        self._make_readers()
        return self

    # ---------------------------------------------------------------- editing

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def default_policy(self) -> MemoryPolicy:
        """The anchor and as many recent turns as the model was trained to see."""
        return MemoryPolicy(anchor_frames=1, window=max(1, self.edit.max_turns - 2))

    def set_progress_bar_config(self, **options) -> None:
        """Options for tqdm, e.g. `disable=True`."""
        self._progress_bar = options

    @torch.no_grad()
    def start(
        self, image: Tensor | Image.Image, policy: MemoryPolicy | None = None, area: int | None = None
    ) -> AnchorMemory:
        """A session from a source image, [3, H, W] in 0..1 or a Pillow image.

        It is worked on at the nearest size the model knows; `area` replaces the side of the square, in pixels, whose
        area the model was trained at.
        """
        image = to_tensor(image) if isinstance(image, Image.Image) else image
        if image.ndim != 3 or image.shape[0] != 3:
            raise AnchorEditError(f"the image is {list(image.shape)}", "Give one image [3, height, width]")
        height, width = image.shape[-2:]
        area = self.edit.resolution if area is None else area
        geometry = fit(height, width, area, self.edit.resolution_step, self.edit.max_aspect_ratio)
        latent = self.vae.encode(geometry.to_work(image[None]))[0]
        (null_text,) = self.text_encoder.encode([""])
        return AnchorMemory.start(
            latent, null_text, image, geometry, policy or self.default_policy, self._latent_space()
        )

    @torch.no_grad()
    def turn(
        self,
        memory: AnchorMemory,
        instruction: str,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        mask: Tensor | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
    ) -> AnchorMemory:
        """The memory with one more turn; `memory` itself stays.

        An empty instruction is a null edit: the image is made again as it is. `mask` [1, H, W] at the input's
        size limits the edit to where it is above 0. Steps, guidance and sampler ("renoise" or "euler") are the
        checkpoint's if not given.
        """
        (turn,) = self._sampled(memory, instruction, [seed], steps, guidance, mask, sampler, on_step)
        return self.reader.commit(memory, turn)

    @torch.no_grad()
    def variants(
        self,
        memory: AnchorMemory,
        instruction: str,
        seed: int = 0,
        count: int = 4,
        steps: int | None = None,
        guidance: float | None = None,
        mask: Tensor | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
        at_once: bool = True,
    ) -> tuple[AnchorMemory, ...]:
        """`count` candidates for the next turn, each a memory to go on with; other arguments as in `turn`.

        The first one is what `turn` makes of the seed, up to rounding, the others have the seeds of `variant_seeds`;
        each names its own. They are sampled as one batch, or with `at_once` False one after the other, which takes
        less memory. A candidate is read into the memory's keys and values when a turn goes on from it. `on_step`
        is shown the first of a batch.
        """
        seeds = variant_seeds(operator.index(seed), operator.index(count))
        batches = [seeds] if at_once else [[each] for each in seeds]
        mask = None if mask is None else mask.float().cpu()  # once: the candidates share it
        options = (steps, guidance, mask, sampler, on_step)
        turns = [turn for batch in batches for turn in self._sampled(memory, instruction, batch, *options)]
        return tuple(memory.commit(turn, self.reader.identity) for turn in turns)

    def _sampled(
        self,
        memory: AnchorMemory,
        instruction: str,
        seeds: Sequence[int],
        steps: int | None,
        guidance: float | None,
        mask: Tensor | None,
        sampler: str | None,
        on_step: OnStep | None,
    ) -> list[Turn]:
        """The next turn by each of the seeds, sampled as one batch."""
        self.check_vae(memory)
        self.check_model(memory)
        instruction = _checked_text(instruction.strip())
        options = {"guidance": None if guidance is None else float(guidance), "sampler": sampler}
        edit = replace(self.edit, **{name: value for name, value in options.items() if value is not None})
        edit = with_steps(edit, steps)
        seeds = [operator.index(seed) for seed in seeds]  # numpy's integers would not go into a session file
        mask = None if mask is None else mask.float().cpu()
        constraint = None if mask is None else memory.mask_constraint(mask)
        text = self.text_encoder.encode([instruction])[0].cpu()
        predict = self._predictor(text, *self.reader.visible(memory, text))
        if edit.cfg != 1:
            predict = guided(predict, self._unconditional(memory, text), edit.cfg)
        shape = memory.turns[-1].latent.shape
        first = None if on_step is None else lambda step, total, x0: on_step(step, total, x0[0])
        latents = sample(predict, shape, edit, seeds, len(memory), first, constraint, self.device)
        if not latents.isfinite().all():
            raise AnchorEditError(
                f"turn {len(memory)} came out as NaN or infinite (guidance {edit.cfg:g}, "
                f"{next(self.transformer.parameters()).dtype})",
                "Lower the guidance, use float32, or check the weights",
            )
        settings = {"sampler": edit.sampler, "guidance": edit.cfg}
        settings |= {"steps": list(edit.timesteps)} if edit.sampler == "renoise" else {"num_steps": edit.num_steps}
        return [
            Turn(latent, instruction, text, seed, settings, mask) for latent, seed in zip(latents, seeds, strict=True)
        ]

    @torch.no_grad()
    def image(self, memory: AnchorMemory, turn: int | None = None, before: Tensor | None = None) -> Tensor:
        """The image [3, H, W] of a turn (default: the newest) at the input's own size; turn 0 is the source itself.

        A masked turn is put into the image `before` it, which is made again if it is not given.
        """
        turn = memory.last if turn is None else turn
        if turn == 0:
            return memory.image
        self.check_vae(memory)
        entry = memory.rewind(turn).turns[-1]
        decoded = self.vae.decode(entry.latent[None]).cpu()
        image = memory.geometry.from_work(decoded)[0]
        if entry.mask is None:
            return image
        before = self.image(memory, turn - 1) if before is None else before
        feather = max(1, round(_FEATHER * min(image.shape[-2:])))
        return composite(image[None], before[None], entry.mask[None], feather)[0]

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
        """Edits an image, or goes on with a memory, one instruction after the other; arguments as in `turn`."""
        from tqdm.auto import tqdm

        instructions = [instructions] if isinstance(instructions, str) else list(instructions)
        memory = image if isinstance(image, AnchorMemory) else self.start(image, policy)
        images = [self.image(memory)]
        for instruction in tqdm(instructions, desc="turns", **self._progress_bar):
            memory = self.turn(memory, instruction, seed, num_inference_steps, guidance_scale, mask)
            images.append(self.image(memory, before=images[-1]))
        return AnchorEditOutput(images, memory)

    # ---------------------------------------------------------------- parts of a turn

    def _context(self, text: Tensor, rows: int | None = None) -> TextContext:
        """Text keys and values; a turn asks for the same text when it samples and when it commits."""
        for known, known_rows, context in self._contexts:
            if known_rows == rows and torch.equal(known, text):
                return context
        lengths = None if rows is None else torch.tensor([rows])
        context = self.transformer.embed_text(text.to(self.device)[None, None], lengths)
        self._contexts.append((text, rows, context))
        return context

    def _unconditional(self, memory: AnchorMemory, text: Tensor) -> PredictFlow:
        """The null text's branch of guidance; both branches read the same history unless the checkpoint says not."""
        null = memory.turns[0].text
        if self.edit.negative_history:
            return self._predictor(null, *self._null_reader.visible(memory.with_prompt(null), null))
        return self._predictor(null, *self.reader.visible(memory, text))

    def _read_frame(
        self, latent: Tensor, text: Tensor, rows: int | None, view: FrameView, blocks: tuple[FrameKV, ...]
    ) -> FrameKV:
        latent = latent.to(self.device)[None, :, None]
        block, _ = self.transformer.read(latent, self._context(text, rows), view, self.edit.temporal_stride, blocks)
        return block

    def _predictor(self, text: Tensor, view: FrameView, blocks: tuple[FrameKV, ...]) -> PredictFlow:
        context = self._context(text)

        def predict(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(x), 1), time, device=x.device)
            flow = self.transformer(x[:, :, None], times, context, (view,), self.edit.temporal_stride, blocks)
            return flow[:, :, 0].float()

        return predict

    def check_model(self, memory: AnchorMemory) -> None:
        """Refuses a session whose latents or texts the transformer cannot read."""
        config, latent = self.transformer.config, memory.turns[0].latent
        if latent.shape[0] != config.in_channels:
            raise AnchorEditError(
                f"the session's latents have {latent.shape[0]} channels, the model takes {config.in_channels}",
                "Use the model it was started with",
            )
        if any(side % patch for side, patch in zip(latent.shape[1:], config.patch_size[1:])):
            raise AnchorEditError(
                f"the session's latents are {list(latent.shape)}, which the model cannot cut into patches of "
                f"{list(config.patch_size[1:])}",
                "Start the session with this model",
            )
        widths = {turn.text.shape[-1] for turn in memory.turns} - {config.text_dim}
        if widths:
            raise AnchorEditError(
                f"the session's text is {widths.pop()} wide, the model takes {config.text_dim}",
                "Use the model and text encoder it was started with",
            )

    def check_vae(self, memory: AnchorMemory) -> None:
        """Refuses a session that another VAE made."""
        geometry, latent = memory.geometry, memory.turns[0].latent
        factor = self.vae.spatial_factor
        expected = (self.vae.latent_channels, geometry.work_height // factor, geometry.work_width // factor)
        if latent.shape != expected:
            raise AnchorEditError(
                f"the session's latents are {list(latent.shape)}, the VAE makes {list(expected)} of its image",
                "Use the model it was started with, VAE included",
            )
        if memory.latent_space and memory.latent_space != self._latent_space():
            raise AnchorEditError(
                "the session's latents are from another VAE than this one",
                "Use the model it was started with, VAE included",
            )

    def _latent_space(self) -> str:
        """What tells one VAE's latents from another's: their channels and statistics."""
        config = self.vae.model.config
        return latent_space(self.vae.latent_channels, config.latents_mean, config.latents_std)


def latent_space(channels: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """The fingerprint of the latents that a VAE with these statistics makes."""
    return hashlib.sha256(json.dumps([channels, list(mean), list(std)]).encode()).hexdigest()[:16]


def _checked_text(instruction: str) -> str:
    """Refuses halves of characters, as a shell or JSON in a wrong encoding leaves them: no file can hold them."""
    try:
        instruction.encode()
    except UnicodeEncodeError:
        raise AnchorEditError(f"instruction {instruction!r:.80} is no valid text", "Give it in UTF-8") from None
    return instruction


def _bundled_parts(weights: Path) -> Path:
    """The bundled VAE and text encoder serve weights of the bundled model's size, and no others."""
    if read_checkpoint(weights).transformer_config == TransformerConfig.named("tiny"):
        return TINY
    raise AnchorEditError(
        f"'{weights}' has no folders vae and text_encoder with it", "Put Wan 2.1's there, as diffusers stores them"
    )
