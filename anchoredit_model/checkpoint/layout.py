"""Reading the transformer's weights from whatever file an artist or a trainer has, and writing our own.

outline             what a file is and whether it is whole, by the names of its weights
read_checkpoint     any layout -> Checkpoint: weights under Wan's own names, sizes, edit settings
load_transformer    the same -> a CausalWanTransformer, strictly: every weight there, none left over
save_checkpoint     one .safetensors that we and ComfyUI read
save_folder         a folder holding that file and a readable config.json
fingerprint         a content hash, for session files and the keys of K/V blocks

The layouts are listed in checkpoint_files.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..config import EditConfig, TransformerConfig
from ..errors import AnchorEditError
from ..networks.transformer import CausalWanTransformer
from .files import RawCheckpoint, read_raw
from .keymap import to_comfy_json, to_wan_name, unwrapped

LATENT_CHANNELS = 16  # of Wan 2.1's VAE; what conditions a model by extra channels is another model
HEAD_DIM = 128  # of every released Wan; a file of another head size says so in its metadata
HASHED_WHOLE = 1 << 20  # bytes; a larger tensor goes into the fingerprint as a sum and samples
HASH_SAMPLES = 4096  # 8-byte words

# How weights without our settings are sampled: as Wan 2.1 itself, which was never trained to edit.
UNDISTILLED = EditConfig(sampler="euler", num_steps=50, shift=8.0, cfg=5.0)

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Other models in an all-in-one file as ComfyUI saves it.
_NEIGHBOURS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.")
# Words in a weight's name (Wan's or diffusers') that only a variant we can't run has.
_VARIANTS = {
    "img_emb": "an image-to-video model",
    "image_embedder": "an image-to-video model",
    "vace_blocks": "a VACE model",
    "vace_patch_embedding": "a VACE model",
    "control_adapter": "a camera-control model",
    "ref_conv": "a reference-control model",
    "face_adapter": "a character-animation model",
    "audio_injector": "a speech-to-video model",
}


@dataclass(frozen=True)
class Checkpoint:
    """What was read: weights under Wan's own names, sizes, edit settings (None: the file has none) and layout."""

    state_dict: dict[str, Tensor]
    transformer_config: TransformerConfig
    edit_config: EditConfig | None
    layout: str


@dataclass(frozen=True)
class Outline:
    """What is known without reading a weight; `wan_file` is one file under Wan's own names, as ComfyUI loads it."""

    layout: str
    wan_file: bool
    edit_config: EditConfig | None


# ------------------------------------------------------------------------------------------------ public


def outline(path: str | os.PathLike) -> Outline:
    """What the file or folder at `path` is, for a program that loads the weights itself, quantised ones as well.

    Raises AnchorEditError as `read_checkpoint` does, and if weights of a Wan transformer are missing.
    """
    path = Path(path).expanduser()
    raw = read_raw(path)
    weights, layout = _wan_weights(raw, path)
    layers = len(_layers(weights))
    names = _empty_model(
        TransformerConfig(dim=HEAD_DIM, ffn_dim=1, num_heads=1, num_layers=max(1, layers))
    ).state_dict()
    _refuse({"missing": [name for name in names if name not in weights]}, str(path))
    by_wan_names = layout in ("anchoredit", "comfyui", "wan")
    return Outline(layout, path.is_file() and raw.files == 1 and by_wan_names, raw.edit_config)


def read_checkpoint(path: str | os.PathLike, *, num_heads: int | None = None) -> Checkpoint:
    """Read the weights at `path`, a file or a folder of any layout.

    Tensors keep the file's dtype and may stay memory-mapped; fp8 ones are turned into bfloat16 here. Sizes come
    from the weights' shapes. The number of heads does not show in them: it is `num_heads` if given, else
    what the file's settings say, else dim // 128.

    Raises AnchorEditError for what is missing, damaged, unknown, not text-to-video, contradicts its own
    settings, or is a pickle with more than tensors in it.
    """
    path = Path(path).expanduser()
    raw = read_raw(path)
    weights, layout = _wan_weights(raw, path)
    declared = raw.declared if num_heads is None else {**raw.declared, "num_heads": num_heads}
    config = _sizes(weights, declared, path)
    return Checkpoint(_dequantised(weights, path), config, raw.edit_config, layout)


def load_transformer(
    path: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    num_heads: int | None = None,
) -> tuple[CausalWanTransformer, EditConfig]:
    """The transformer at `path`, in eval mode, and how it edits (`UNDISTILLED` if the file does not say).

    Strict: raises AnchorEditError naming up to five weights that are missing, left over or of a wrong shape.
    On a CPU and in the file's own dtype the weights may stay memory-mapped: don't overwrite the file in place.
    """
    checkpoint = read_checkpoint(path, num_heads=num_heads)
    model = _empty_model(checkpoint.transformer_config)
    _check_fit(checkpoint.state_dict, model, str(path))
    weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in checkpoint.state_dict.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval(), checkpoint.edit_config or UNDISTILLED


def save_checkpoint(
    path: str | os.PathLike,
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    transformer_config: TransformerConfig,
    edit_config: EditConfig,
    dtype: torch.dtype | None = None,
    **notes: str,
) -> None:
    """Write one .safetensors under Wan's own names, in `dtype` (None: as they are); all of it or nothing.

    Its metadata holds `anchoredit`, the edit settings, `config`, the sizes as ComfyUI reads them, and `notes`. Wrappers
    (FSDP, torch.compile ...) around a name are stripped; gather sharded weights first. Raises AnchorEditError
    if the weights are not exactly those that `transformer_config` asks for, or the place can't be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise AnchorEditError(f"cannot save a checkpoint as {path.name}", "Its name must end in .safetensors")
    weights = _weights_of(model_or_state_dict, f"what is to be saved as {path.name}")
    _check_fit(weights, _empty_model(transformer_config), f"what is to be saved as {path.name}")
    weights = {name: tensor.detach().to(device="cpu", dtype=dtype).contiguous() for name, tensor in weights.items()}
    metadata = {
        **notes,
        "format": "pt",
        "config": json.dumps({"transformer": to_comfy_json(transformer_config)}),
        "anchoredit": json.dumps(edit_config.to_json()),
    }
    with atomic_write(path, "checkpoint", make_folder=True) as unfinished:
        save_file(weights, unfinished, metadata)


def save_folder(
    path: str | os.PathLike,
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    transformer_config: TransformerConfig,
    edit_config: EditConfig,
    dtype: torch.dtype | None = None,
) -> None:
    """Write our folder: model.safetensors as `save_checkpoint` writes it, then config.json for people and tools."""
    path = Path(path).expanduser()
    save_checkpoint(path / "model.safetensors", model_or_state_dict, transformer_config, edit_config, dtype)
    settings = {"transformer": to_comfy_json(transformer_config), "edit": edit_config.to_json()}
    text = json.dumps(settings, indent=2) + "\n"
    with atomic_write(path / "config.json", "settings") as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def fingerprint(model_or_state_dict: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash of the weights' names, shapes, dtypes and values, 64 hex digits; the same on every device.

    Tensors up to 1 MiB are hashed whole. Of a larger one, 4096 evenly spaced 8-byte words are hashed, with the
    sum of all its words as 64-bit integers: exact and free of order, where a float sum would differ between
    devices. What it can't see is an exchange of values between places that are not sampled; no training,
    LoRA merge or damage does that. About 5 GB/s on a CPU.
    """
    weights = _weights_of(model_or_state_dict, "the model")
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        for part in _hashed_parts(tensor.reshape(-1).view(torch.uint8)):  # [bytes]
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _hashed_parts(data: Tensor) -> list[Tensor]:
    """What of a tensor's bytes [n] the fingerprint is made of."""
    if data.numel() <= HASHED_WHOLE:
        return [data]
    whole = data.numel() - data.numel() % 8
    body = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()  # words need to be aligned
    words = body.view(torch.int64)  # [n // 8]
    return [words[:: words.numel() // HASH_SAMPLES], words.sum(), data[whole:]]


# ------------------------------------------------------------------------------------------------ weights


def _wan_weights(raw: RawCheckpoint, path: Path) -> tuple[dict[str, Tensor], str]:
    """The transformer's weights under Wan's own names, and the layout now that the names are known."""
    weights = _unwrapped_names(_without_neighbours(raw.weights), str(path))
    _refuse_variants(weights, path)
    layout = raw.layout
    if "condition_embedder.time_proj.weight" in weights:
        weights = {to_wan_name(name) or name: tensor for name, tensor in weights.items()}
        layout = "diffusers" if layout == "comfyui" else layout
    return weights, layout


def _without_neighbours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of an all-in-one file the transformer only; VAE and text encoder are loaded from their own files."""
    if not any(name.startswith("model.diffusion_model.") for name in weights):
        return weights
    return {name: tensor for name, tensor in weights.items() if not name.startswith(_NEIGHBOURS)}


def _refuse_variants(weights: dict[str, Tensor], source: Path) -> None:
    for name in weights:
        for word in name.split("."):
            if word in _VARIANTS:
                raise AnchorEditError(f"{source} is {_VARIANTS[word]} (it has {name})", "Give Wan 2.1 text-to-video")


def _weights_of(model_or_state_dict: nn.Module | Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    if isinstance(model_or_state_dict, nn.Module):
        model_or_state_dict = model_or_state_dict.state_dict()
    return _unwrapped_names(model_or_state_dict, source)


def _unwrapped_names(raw: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, tensor in raw.items():
        name = unwrapped(key)
        if name in weights:
            raise AnchorEditError(
                f"{source} holds the weight {name} twice, once as {key}", "Keep one of the models in it"
            )
        weights[name] = tensor
    return weights


def _dequantised(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """fp8 weights times their scale, as bfloat16. ComfyUI's files call the scale of layer.weight
    `layer.scale_weight` (with a marker `scaled_fp8`) or `layer.weight_scale`; scales of inputs matter to fp8
    arithmetic only. https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md
    """
    scales: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in ("scale_weight", "weight_scale"):
            if tensor.numel() != 1:
                raise AnchorEditError(
                    f"{source} scales {layer} by {tensor.numel()} numbers",
                    "Only fp8 with one scale per weight is read, give the bf16 file",
                )
            scales[f"{layer}.weight"] = tensor.float().reshape(())
        elif leaf not in ("scaled_fp8", "scale_input", "input_scale", "comfy_quant"):
            plain[name] = tensor
    for name, tensor in plain.items():
        if not tensor.is_floating_point():
            raise AnchorEditError(f"{source} holds {name} as {tensor.dtype}, which is not read", "Give the bf16 file")
        if name in scales:
            plain[name] = (tensor.float() * scales[name]).bfloat16()
        elif tensor.dtype in _FP8:
            plain[name] = tensor.bfloat16()
    return plain


def _sizes(weights: dict[str, Tensor], declared: dict[str, Any], source: Path) -> TransformerConfig:
    """Sizes out of the shapes; what the file's settings declare must agree, and adds what shapes don't show."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in weights:
            raise AnchorEditError(
                f"{source} holds no Wan 2.1 transformer (no {name}; it begins with {next(iter(weights), 'nothing')})",
                "Give a text-to-video checkpoint",
            )
        if weights[name].ndim != ndim:
            raise AnchorEditError(
                f"{source} has {name} of shape {tuple(weights[name].shape)}, not of {ndim} dimensions"
            )
        return tuple(weights[name].shape)

    dim, in_channels, *patch_size = shape("patch_embedding.weight", 5)
    if in_channels != LATENT_CHANNELS:
        raise AnchorEditError(
            f"{source} takes {in_channels} channels where text-to-video takes {LATENT_CHANNELS} (image-to-video, "
            "control and Wan 2.2 5B models do)",
            "Give a Wan 2.1 text-to-video checkpoint",
        )
    found = {
        "dim": dim,
        "in_channels": in_channels,
        "patch_size": tuple(patch_size),
        "text_dim": shape("text_embedding.0.weight", 2)[1],
        "freq_dim": shape("time_embedding.0.weight", 2)[1],
        "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0],
        "out_channels": shape("head.head.weight", 2)[0] // prod(patch_size),
        "num_layers": len(_layers(weights)),
    }
    for name, value in found.items():
        if declared.get(name, value) != value:
            raise AnchorEditError(
                f"{source} declares {name} {declared[name]}, but its weights have {value}",
                "Give the config that belongs to them",
            )
    num_heads = declared.get("num_heads", dim // HEAD_DIM)
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise AnchorEditError(
            f"{source} is {dim} wide, which {num_heads} heads can't share",
            "Put the right `num_heads` into its settings",
        )
    return TransformerConfig(**{**declared, **found, "num_heads": num_heads})


def _layers(weights: Mapping[str, Tensor]) -> set[str]:
    """Numbers of the blocks that have weights."""
    return {match[1] for match in map(re.compile(r"blocks\.(\d+)\.").match, weights) if match}


def _empty_model(config: TransformerConfig) -> CausalWanTransformer:
    """The transformer without any memory for its weights."""
    with torch.device("meta"):
        return CausalWanTransformer(config)


def _check_fit(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Raise AnchorEditError unless `weights` are exactly the model's, by name and shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "left over": [name for name in weights if name not in wanted],
        "of a wrong shape": [
            f"{name} {tuple(weights[name].shape)} instead of {shape}"
            for name, shape in wanted.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
    }
    _refuse(problems, source)


def _refuse(problems: dict[str, list[str]], source: str) -> None:
    """Raise AnchorEditError for the first kind of problem that weights have, naming up to five."""
    for problem, names in problems.items():
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise AnchorEditError(
                f"{source} does not fit a Wan 2.1 text-to-video transformer: {len(names)} weights {problem} ({listed})",
                "Give a complete checkpoint of this size",
            )
