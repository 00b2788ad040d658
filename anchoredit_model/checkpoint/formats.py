"""The formats of checkpoints: a table of how each is detected and read.

format        what it is
"anchoredit"  ours: a folder with config.json {"transformer": ..., "edit": ...} and model.safetensors, or a single
              file whose metadata holds `anchoredit` (the edit settings) and `config` (the sizes)
"diffusers"   WanTransformer3DModel: its folder, the pipeline's folder around it, or its single file
"wan"         Wan's original folder: config.json with `dim`, one or several .safetensors
"comfyui"     a single file with Wan's names, with or without a prefix, also fp8
"published"   model.pt of the AnchorEdit and Self-Forcing code: `generator_ema` or `generator`
"state_dict"  a .pt that is the state dict itself
"gguf"        refused, with the way to load it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import EditConfig
from ..errors import AnchorEditError
from .keymap import from_comfy_json, from_diffusers_json, has_diffusers_names
from .source import Source, json_object

# The published code showed frame 0 the whole first prompt and numbered slots by turn.
PUBLISHED_EDIT = EditConfig(anchor_prompt="first_prompt", slot_mode="absolute")
_AVERAGED = ("generator_ema", "generator", "model")  # the averaged weights are those that the paper evaluates


@dataclass(frozen=True)
class RawCheckpoint:
    """Hold weights under the file's own names; `declared` are the fields of TransformerConfig that settings name."""

    weights: dict[str, Tensor]
    declared: dict[str, Any] = field(default_factory=dict)
    edit_config: EditConfig | None = None
    format: str = ""
    files: int = 1


@dataclass(frozen=True)
class Format:
    """Detect and read one format; `wan_names` says that a single file of it is what ComfyUI's own loader takes."""

    detect: Callable[[Source], bool]
    read: Callable[[Source], RawCheckpoint]
    wan_names: bool = False


def read_raw(path: Path) -> RawCheckpoint:
    """Read the file or folder at `path` by the first format that detects it; tensors may stay memory-mapped.

    Raises AnchorEditError for what is missing, damaged, of no known format, or a pickle with more than data in it.
    """
    source = Source(path)
    for name, each in FORMATS.items():
        if each.detect(source):
            return replace(each.read(source), format=name, files=len(source.files))
    if source.is_safetensors:
        raise AnchorEditError(
            f"{source.path / 'config.json'} describes {source.settings.get('_class_name') or 'no known model'}, not a "
            "Wan 2.1 text-to-video transformer",
            "Give a folder of AnchorEdit, diffusers (WanTransformer3DModel) or Wan (WanModel)",
        )
    raise AnchorEditError(
        f"{source.files[0]} is neither safetensors nor a PyTorch checkpoint", "Give a Wan 2.1 checkpoint"
    )


# ---------------------------------------------------------------- safetensors


def _is_anchoredit(source: Source) -> bool:
    if not source.is_safetensors:
        return False
    if source.settings:
        return isinstance(source.settings.get("transformer"), dict) and isinstance(source.settings.get("edit"), dict)
    return "anchoredit" in source.metadata


def _read_anchoredit(source: Source) -> RawCheckpoint:
    if source.settings:
        sizes, edit = source.settings["transformer"], source.settings["edit"]
        _check_model_type(source.path / "config.json", sizes)
    else:
        sizes = _sizes_in_metadata(source)
        edit = json_object(f"the metadata `anchoredit` of {source.path}", source.metadata["anchoredit"])
    return RawCheckpoint(source.weights, from_comfy_json(sizes), EditConfig.from_json(edit))


def _is_diffusers(source: Source) -> bool:
    if not source.is_safetensors:
        return False
    if source.settings:
        return source.settings.get("_class_name") == "WanTransformer3DModel"
    return has_diffusers_names(source.weights)


def _read_diffusers(source: Source) -> RawCheckpoint:
    if source.settings:
        return RawCheckpoint(source.weights, from_diffusers_json(source.settings))
    return _read_comfyui(source)


def _is_wan(source: Source) -> bool:
    settings = source.settings if source.is_safetensors else {}
    return "dim" in settings and settings.get("_class_name") in (None, "WanModel")


def _read_wan(source: Source) -> RawCheckpoint:
    _check_model_type(source.path / "config.json", source.settings)
    return RawCheckpoint(source.weights, from_comfy_json(source.settings))


def _is_comfyui(source: Source) -> bool:
    return source.is_safetensors and not source.settings


def _read_comfyui(source: Source) -> RawCheckpoint:
    return RawCheckpoint(source.weights, from_comfy_json(_sizes_in_metadata(source)))


def _sizes_in_metadata(source: Source) -> dict[str, Any]:
    """Return the sizes in a file's metadata `config`: bare or, for ComfyUI, under `transformer`; {} without."""
    text = source.metadata.get("config")
    config = json_object(f"the metadata `config` of {source.path}", text) if text is not None else {}
    sizes = config["transformer"] if isinstance(config.get("transformer"), dict) else config
    _check_model_type(source.path, sizes)
    return sizes


def _check_model_type(source: Path, sizes: dict[str, Any]) -> None:
    if sizes.get("model_type", "t2v") != "t2v":
        raise AnchorEditError(
            f"model_type in {source} must be t2v, got {sizes['model_type']!r}",
            "Give a text-to-video checkpoint, only these can edit",
        )


# ---------------------------------------------------------------- PyTorch files


def _is_published(source: Source) -> bool:
    return source.is_pickle and _chosen(source.pickled) in ("generator_ema", "generator")


def _read_published(source: Source) -> RawCheckpoint:
    return replace(_read_state_dict(source), edit_config=PUBLISHED_EDIT)


def _read_state_dict(source: Source) -> RawCheckpoint:
    content, path = source.pickled, source.path
    if not isinstance(content, dict):
        raise AnchorEditError(f"{path} holds a {type(content).__name__}", "Give a dict of weights")
    chosen = _chosen(content)
    weights = content if chosen is None else content[chosen]
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise AnchorEditError(
                f"{path} holds {name!r}, a {type(value).__name__}, where weights should be",
                "Give a state dict, or a dict with `generator_ema` or `generator`",
            )
    return RawCheckpoint(weights)


def _chosen(content: Any) -> str | None:
    """Return the key of the weights in what a .pt holds; None if it is the state dict itself."""
    if not isinstance(content, dict):
        return None
    return next((name for name in _AVERAGED if isinstance(content.get(name), dict) and content[name]), None)


def _refuse_gguf(source: Source) -> RawCheckpoint:
    raise AnchorEditError(
        f"{source.path} is a GGUF file", "Load it in ComfyUI with a GGUF loader, or give .safetensors"
    )


# The first that detects a file reads it, so the general ones come last.
FORMATS = {
    "gguf": Format(lambda source: source.start.startswith(b"GGUF"), _refuse_gguf),
    "anchoredit": Format(_is_anchoredit, _read_anchoredit, wan_names=True),
    "diffusers": Format(_is_diffusers, _read_diffusers),
    "wan": Format(_is_wan, _read_wan, wan_names=True),
    "comfyui": Format(_is_comfyui, _read_comfyui, wan_names=True),
    "published": Format(_is_published, _read_published),
    "state_dict": Format(lambda source: source.is_pickle, _read_state_dict),
}
