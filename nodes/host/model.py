"""ComfyUI's internals, and nothing of them anywhere else in the pack.

HostModel      a MODEL as the pipeline's transformer: native forwards with the memory in its attention
HostVAE        a VAE as the pipeline's VAE: images in 0..1 <-> latents as the model takes them
with_memory    a MODEL whose samplers see a memory, inside a mask if there is one; without_memory
load_model, load_bundled   a file, the bundled model as MODEL, CLIP and VAE
new_files, session_files   where the host lets a node write, and where sessions lie
on_step, on_read, progress, say, new_graph   progress, interruption, a line on a node, the nodes that a node becomes
is_out_of_memory, free_device, block_share, block_budget   memory of the device

Runs on ComfyUI 0.3.64 and later.

Legend: B batch, C latent channels, h w latent size, H W image size, T text rows, E text width.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.latent_formats
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.nn.functional as F
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import Tensor

from ...anchoredit_model.checkpoint.comfyui import read_bundled
from ...anchoredit_model.checkpoint.layout import LATENT_CHANNELS, outline, read_checkpoint
from ...anchoredit_model.config import TransformerConfig
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.memory.frame_kv import FrameKV
from ...anchoredit_model.memory.kv_store import KVStore
from ...anchoredit_model.memory.visibility import FrameView
from ...anchoredit_model.networks.text_encoder import TEXT_DIM
from ...anchoredit_model.pipeline import latent_space
from ...anchoredit_model.samplers import LatentConstraint
from .attention import MemoryAttention
from .edit_metadata import FACTS, ModelFacts, VAEFacts, model_facts, with_facts
from .model_identity import Serials
from .paths import NewFiles, SessionFiles, check_relative
from .preview import step_callback

_Wrappers = comfy.patcher_extension.WrappersMP


class HostModel:
    """The artist's MODEL, however it was loaded and patched; made anew for every node that runs it."""

    def __init__(self, patcher, serials: Serials, store: KVStore):
        network = _text_to_video(patcher)
        self.patcher = patcher = without_memory(patcher)
        _when_unloaded(patcher, store)
        facts = model_facts(patcher)
        self.edit, self.trained = facts.edit, facts.trained
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
        facts = [
            serials.of(patcher.model),
            str(patcher.patches_uuid),
            str([patcher.model.get_dtype(), patcher.model.manual_cast_dtype]),
            str(patcher.load_device),
            serials.describe([patcher.model_options, patcher.object_patches, patcher.wrappers]),
        ]
        self.identity = json.dumps(facts)
        self.share = block_share(patcher, store)
        self.rounding = 0.0  # of the keys and values that the last prediction read

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the keys and values that it makes."""
        model = self.patcher.model
        return (model.manual_cast_dtype or model.get_dtype()).itemsize

    def parameters(self) -> Iterator[Tensor]:
        return self.patcher.model.diffusion_model.parameters()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forwards are made inside this; models that the host has moved meanwhile come back by themselves."""
        self.patcher.pre_run()
        try:
            yield
        finally:
            self.patcher.cleanup()

    def flow(self, text: Tensor, view: FrameView, blocks: tuple[FrameKV, ...]) -> Callable[[Tensor, float], Tensor]:
        """The prediction of one turn: (x [B, C, h, w], time 0..1000) -> flow [B, C, h, w]."""
        context, attention = self._context(text), MemoryAttention(view, blocks, self.edit.temporal_stride)
        self.rounding = max((block.rounding for block in blocks), default=0.0)
        return lambda x, time: self._forward(x, time, context, attention)

    def read(
        self, latent: Tensor, text: Tensor, rows: int | None, view: FrameView, blocks: tuple[FrameKV, ...]
    ) -> FrameKV:
        """One forward of a clean frame [C, h, w] at t = 0: its own keys and values."""
        context, attention = (
            self._context(text, rows),
            MemoryAttention(view, blocks, self.edit.temporal_stride, capture=True),
        )
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
        """What the host's samplers hand to the network, and our wrapper: the last one, so around all others' work."""
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)["transformer_options"]
        for kind, present in (("wrappers", self.patcher.wrappers), ("callbacks", self.patcher.callbacks)):
            comfy.patcher_extension.merge_nested_dicts(options.setdefault(kind, {}), present, copy_dict1=False)
        comfy.patcher_extension.add_wrapper_with_key(_Wrappers.DIFFUSION_MODEL, FACTS, attention, options)
        return options | {"sigmas": sigma, "cond_or_uncond": [0]}

    def check_text(self, text: Tensor) -> Tensor:
        """The same text [T, E], if the network takes its width."""
        if text.shape[-1] != self.config.text_dim:
            raise AnchorEditError(
                f"the CLIP's text is {text.shape[-1]} wide, the MODEL takes {self.config.text_dim}",
                "Load the text encoder that belongs to the model (umT5-XXL for Wan 2.1)",
            )
        return text

    def _context(self, text: Tensor, rows: int | None = None) -> Tensor:
        """Text [T, E] as the network takes it [1, 512, E], or only the first `rows` of it."""
        self.check_text(text)
        padded = F.pad(text, (0, 0, 0, max(0, self.config.text_len - len(text))))
        return padded[None, : rows or self.config.text_len].to(self.device)


def _when_unloaded(patcher, store: KVStore) -> None:
    """Keys and values leave the device with the model they belong to, when the host takes it off (not when it swaps it
    for a clone, which it does without unpatching)."""

    def leave(unloaded, unpatch_all: bool) -> None:
        if unpatch_all:
            store.leave(unloaded.load_device)

    kind = comfy.patcher_extension.CallbacksMP.ON_DETACH
    patcher.remove_callbacks_with_key(kind, FACTS)
    patcher.add_callback_with_key(kind, FACTS, leave)


def _text_to_video(patcher) -> comfy.ldm.wan.model.WanModel:
    """The network of a MODEL; refuses all but Wan 2.1 text-to-video."""
    network = patcher.model.diffusion_model
    if type(network) is not comfy.ldm.wan.model.WanModel or network.model_type != "t2v":
        what = f"{type(network).__name__} {getattr(network, 'model_type', '')}".strip()
        raise AnchorEditError(f"the MODEL is {what}, which cannot edit by memory", "Load Wan 2.1 text-to-video")
    if network.in_dim != LATENT_CHANNELS:
        raise AnchorEditError(
            f"the MODEL takes {network.in_dim} channels where text-to-video takes {LATENT_CHANNELS}",
            "Load Wan 2.1 text-to-video",
        )
    return network


class HostVAE:
    """The artist's VAE. Images are encoded one by one, because a Wan VAE takes a batch for a video."""

    spatial_factor = 8
    latent_channels = 16

    def __init__(self, vae):
        if getattr(vae, "latent_dim", 2) != 3 or vae.latent_channels != self.latent_channels:
            raise AnchorEditError(
                f"the VAE makes {vae.latent_channels}-channel latents of another kind", "Load Wan 2.1's VAE"
            )
        self.vae = vae
        self.format = comfy.latent_formats.Wan21()
        mean, std = ([round(value, 4) for value in t.flatten().tolist()] for t in _statistics(self.format))
        facts = getattr(vae, FACTS, None) or VAEFacts(latent_space(self.latent_channels, mean, std))
        self.latent_space, self.edit = facts.latent_space, facts.edit

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 -> latents [B, 16, h, w] as the model takes them."""
        raw = [self.vae.encode(image.movedim(0, -1)[None]) for image in images]  # each [1, 16, 1, h, w]
        return self.format.process_in(torch.cat(raw).float())[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 16, h, w] -> images [B, 3, H, W] in 0..1."""
        images = self.vae.decode(self.format.process_out(latents[:, :, None]))  # [B, 1, H, W, 3]
        return images[:, 0].movedim(-1, 1).float().clamp(0, 1)


def with_memory(
    patcher,
    attend: Callable[[Any], MemoryAttention],
    errors: Callable[[], AbstractContextManager],
    constraint: LatentConstraint | None = None,
):
    """A MODEL whose samplers see a memory.

    When sampling starts, `attend` is asked for the attention with the very MODEL that samples: LoRA and other nodes
    that follow have been applied by then. What it returns lives as long as the run. `errors` goes around the run.
    `constraint` (x0 [B, C, h, w] -> x0) is done to every prediction, whatever the guider and the sampler.
    """

    def sample(executor, *arguments, **options):
        guider = executor.class_obj  # its model_options are this run's own
        with errors():
            attention = attend(guider.model_patcher)
            here, add = guider.model_options["transformer_options"], comfy.patcher_extension.add_wrapper_with_key
            add(_Wrappers.PREPARE_SAMPLING, FACTS, partial(_reserve, attention.nbytes), here)
            add(_Wrappers.DIFFUSION_MODEL, FACTS, attention, here)
            if constraint is not None:
                add(_Wrappers.PREDICT_NOISE, FACTS, partial(_constrained, constraint), here)
            return executor(*arguments, **options)

    patched = without_memory(patcher).clone()
    patched.add_wrapper_with_key(_Wrappers.OUTER_SAMPLE, FACTS, sample)
    return patched


def without_memory(patcher):
    """The MODEL that `with_memory` was given, with what was patched into it since."""
    if not patcher.get_wrappers(_Wrappers.OUTER_SAMPLE, FACTS):
        return patcher
    plain = patcher.clone()
    plain.remove_wrappers_with_key(_Wrappers.OUTER_SAMPLE, FACTS)
    return plain


def _constrained(constraint: LatentConstraint, executor, *arguments, **options) -> Tensor:
    """A prediction of the clean latent [B, C, 1, h, w] with what must not change put back."""
    return constraint(executor(*arguments, **options)[:, :, 0])[:, :, None]


def _reserve(nbytes: int, executor, patcher, noise_shape, *arguments, **options):
    """Loads the weights so that `nbytes` more stay free: the host takes them for more frames of the latent."""
    batch, channels, frames, *size = noise_shape
    each = patcher.model.memory_required([batch, channels, 1, *size])
    return executor(patcher, [batch, channels, frames + ceil(nbytes / each), *size], *arguments, **options)


def model_latent(latent: dict[str, Tensor]) -> Tensor:
    """A LATENT [1, 16, 1, h, w] as the model takes it, [16, h, w]."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[0] != 1 or samples.shape[2] != 1:
        raise AnchorEditError(
            f"the LATENT is {list(samples.shape)}", "Give one image's, as Apply Memory makes it [1, 16, 1, h, w]"
        )
    return comfy.latent_formats.Wan21().process_in(samples)[0, :, 0].float()


def empty_latent(shape: torch.Size) -> dict[str, Tensor]:
    """An empty LATENT for an image's latent of shape [16, h, w]."""
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(shape, device=device)[None, :, None]}


def as_sampler(function: Callable) -> comfy.samplers.KSAMPLER:
    """A SAMPLER of a function (model, x, sigmas, extra_args, callback, disable) -> x0."""
    return comfy.samplers.KSAMPLER(function)


# ------------------------------------------------------------------------------------------------ files


def model_files() -> list[str]:
    """Names of the files in the host's folders for diffusion models."""
    return folder_paths.get_filename_list("diffusion_models")


def model_path(name: str) -> str:
    """Where such a file lies."""
    path = folder_paths.get_full_path("diffusion_models", name)
    if path is None or name not in model_files():
        raise AnchorEditError(f"'{name}' is not there", "Put it into models/diffusion_models, or choose another file")
    return path


def load_model(path: str):
    """A MODEL from a file of any layout that AnchorEdit knows, with how it was trained to edit if the file says so.

    What the host knows goes through the host's own loader as it is, fp8 included; other layouts are renamed first.
    """
    file = outline(path)
    try:
        if file.wan_file:
            model = comfy.sd.load_diffusion_model(path)
        else:
            model = comfy.sd.load_diffusion_model_state_dict(read_checkpoint(path).state_dict)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise AnchorEditError(
            f"ComfyUI cannot load {path} ({reason})", "Choose a Wan 2.1 text-to-video file"
        ) from error
    if model is None:
        raise AnchorEditError(f"ComfyUI finds no diffusion model in {path}", "Choose a Wan 2.1 text-to-video file")
    _text_to_video(model)
    return model if file.edit_config is None else with_facts(model, ModelFacts(file.edit_config, trained=True))


def load_bundled():
    """MODEL, CLIP and VAE of the bundled model, in float32 and as the host's own kinds."""
    parts = read_bundled(*(t.flatten() for t in _statistics(comfy.latent_formats.Wan21())))
    model = comfy.sd.load_diffusion_model_state_dict(parts.transformer, model_options={"dtype": torch.float32})
    model.set_attachments(FACTS, ModelFacts(parts.edit, trained=True))
    colours = model.model.latent_format  # Wan's own suit Wan's VAE
    colours.latent_rgb_factors, colours.latent_rgb_factors_bias = parts.preview_factors, parts.preview_offset
    colours.taesd_decoder_name = None
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.text_encoders.wan.WanT5Tokenizer, _SmallTextEncoder),
        tokenizer_data={"spiece_model": parts.vocabulary},
        model_options={"dtype": torch.float32, "umt5xxl_model_config": parts.text_config},
    )
    _all_there("text encoder", clip.load_sd(parts.text_encoder)[0])
    vae = _small_vae(parts.vae, parts.vae_width)
    setattr(vae, FACTS, VAEFacts(parts.latent_space, parts.edit))
    return model, clip, vae


class _SmallTextEncoder(comfy.text_encoders.wan.WanT5Model):
    """umT5 of any width, whose rows fill the first columns of Wan's."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 - the host's signature
        super().__init__(device=device, dtype=dtype, model_options=model_options)

    def encode_token_weights(self, token_weight_pairs):
        rows, *rest = super().encode_token_weights(token_weight_pairs)
        return F.pad(rows, (0, TEXT_DIM - rows.shape[-1])), *rest


def _small_vae(weights: dict[str, Tensor], width: int):
    """A Wan VAE narrower than Wan's; newer hosts read the width from the weights."""
    if "image_channels" in inspect.signature(comfy.ldm.wan.vae.WanVAE.__init__).parameters:
        return comfy.sd.VAE(sd=weights, dtype=torch.float32)
    return _SmallVAE(weights, width)


class _SmallVAE(comfy.sd.VAE):
    """The attributes that `comfy.sd.VAE` of 0.3.64 sets for Wan 2.1, with another width."""

    def __init__(self, weights: dict[str, Tensor], width: int):
        network = comfy.ldm.wan.vae.WanVAE(
            dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        _all_there("VAE", network.load_state_dict(weights, strict=False)[0])
        scale = width / 96
        self.memory_used_encode = lambda shape, dtype: scale * 6000 * shape[3] * shape[4] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: scale * 7000 * shape[3] * shape[4] * 64 * dtype.itemsize
        self.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
        self.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
        self.upscale_index_formula = self.downscale_index_formula = (4, 8, 8)
        self.latent_dim, self.latent_channels, self.output_channels = 3, 16, 3
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: ((image + 1.0) / 2.0).clamp(0, 1)
        self.disable_offload = self.not_video = False
        self.extra_1d_channel = None
        self.crop_input = True
        self.working_dtypes = [torch.float32]
        self.vae_dtype = torch.float32
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = network.eval()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, self.device, comfy.model_management.vae_offload_device()
        )


def _all_there(what: str, missing: list[str]) -> None:
    missing = [name for name in missing if not name.endswith("logit_scale")]
    if missing:
        raise AnchorEditError(f"the bundled {what} lacks {missing[0]}", "Install AnchorEdit again")


def _statistics(latent_format) -> tuple[Tensor, Tensor]:
    return latent_format.latents_mean, latent_format.latents_std


def session_files() -> SessionFiles:
    """The sessions in the host's folders."""
    return SessionFiles(Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()))


def new_files(prefix: str, image: Tensor) -> NewFiles:
    """Where files with a `filename_prefix` go by the host's own rules; makes the folder. `image` is [3, H, W]."""
    what, (height, width) = f"filename_prefix '{prefix}'", image.shape[-2:]
    check_relative(prefix, what)
    output = folder_paths.get_output_directory()
    try:
        folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    except Exception as error:  # a full disk, a folder that leads out by a link; for the latter, Exception itself
        reason = str(error).strip().partition("\n")[0]
        raise AnchorEditError(
            f"ComfyUI makes no folder for {what} ({reason})", "Choose another name, or a folder that has room"
        ) from error
    return NewFiles(Path(folder), subfolder, stem, number)


def metadata_wanted() -> bool:
    """Whether the artist lets images carry what made them (--disable-metadata)."""
    return not comfy.cli_args.args.disable_metadata


# ------------------------------------------------------------------------------------------------ while a node runs


def on_step(model: HostModel, steps: int) -> Callable[[int, int, Tensor], None]:
    """Progress with the host's kind of latent preview; raises when the artist interrupts."""
    previewer = latent_preview.get_previewer(model.device, model.patcher.model.latent_format)
    show = comfy.utils.ProgressBar(steps).update_absolute
    return step_callback(previewer, show, comfy.model_management.throw_exception_if_processing_interrupted)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device ran out of memory; there are kinds of error for it that older hosts do not know."""
    return isinstance(error, comfy.model_management.OOM_EXCEPTION) or "out of memory" in str(error).lower()


def on_read(done: int, total: int) -> None:
    """Progress of the node that reads the session again, if it is more than the image that a turn always reads."""
    if total > 1:
        context = get_executing_context()
        if done == 0 and context is not None:
            say(f"Reading {total} images of the session again", context.node_id)
        progress(done, total)


def progress(done: int, total: int) -> None:
    """Moves the running node's bar; raises when the artist interrupts."""
    comfy.utils.ProgressBar(total).update_absolute(done)
    comfy.model_management.throw_exception_if_processing_interrupted()


def say(text: str, node_id: str | None) -> None:
    """A line of text on a node; for a node inside an expanded one, on that one."""
    if node_id is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id.partition(".")[0])


def free_device(store: KVStore) -> None:
    """Leaves the device to what comes: remembered keys and values go to main memory, and what lies idle is let go."""
    store.leave(comfy.model_management.get_torch_device())
    comfy.model_management.soft_empty_cache()


def block_share(patcher, store: KVStore) -> int:
    """Bytes that visible keys and values may take on the device beside the whole model and what it works in.

    From what is free now, the part of the model that is loaded and what is remembered there counted as free.
    """
    device = patcher.load_device
    free = comfy.model_management.get_free_memory(device) + patcher.loaded_size() + store.nbytes_on(device)
    return max(0, int(free - patcher.model_size() - comfy.model_management.minimum_inference_memory()))


def block_budget() -> int:
    """Bytes that remembered keys and values may take in all: a quarter of what the device has."""
    device = comfy.model_management.get_torch_device()
    return int(comfy.model_management.get_total_memory(device)) // 4


def new_graph() -> GraphBuilder:
    """The nodes that a node becomes."""
    return GraphBuilder()
