"""What lies on the disk: any layout of a checkpoint -> its weights as they are, and what its settings say.

layout        what it is
"anchoredit"  ours: a folder with config.json {"transformer": ..., "edit": ...} and model.safetensors, or a single
              file whose metadata holds `anchoredit` (the edit settings) and `config` (the sizes)
"diffusers"   WanTransformer3DModel: its folder, the pipeline's folder around it, or its single file
"wan"         Wan's original folder: config.json with `dim`, one or several .safetensors
"comfyui"     a single file with Wan's names, with or without a prefix, also fp8
"published"   model.pt of the AnchorEdit and Self-Forcing code: `generator_ema` or `generator`
"state_dict"  a .pt that is the state dict itself

What a file is, is decided by its content, never by its name. Pickled code is never run.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import EditConfig
from ..errors import AnchorEditError
from .keymap import from_comfy_json, from_diffusers_json

# The published code showed frame 0 the whole first prompt and numbered slots by turn.
PUBLISHED_EDIT = EditConfig(anchor_prompt="first_prompt", slot_mode="absolute")

# Five digits at most, so that a name can't ask for a list of billions.
_SHARD = re.compile(r"(?P<stem>.+)(?P<word>_part|-)(?P<index>\d{1,5})(?P<of>of|-of-)(?P<count>\d{1,5})\.safetensors")


@dataclass(frozen=True)
class RawCheckpoint:
    """Weights under the file's own names; `declared` are the fields of TransformerConfig that settings name."""

    weights: dict[str, Tensor]
    layout: str
    declared: dict[str, Any] = field(default_factory=dict)
    edit_config: EditConfig | None = None
    files: int = 1


def read_raw(path: Path) -> RawCheckpoint:
    """Read the file or folder at `path`; tensors may stay memory-mapped.

    Raises AnchorEditError for what is missing, damaged, of no known layout, or a pickle with more than data in it.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise AnchorEditError(f"there is no checkpoint at {path}", "Check the path")
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path, _shards(path), {})
    weights, layout = _pick_weights(path, _unpickle(path, is_zip=kind == "zip"))
    return RawCheckpoint(weights, layout, edit_config=PUBLISHED_EDIT if layout == "published" else None)


# ------------------------------------------------------------------------------------------------ folders and files


def _read_folder(path: Path) -> RawCheckpoint:
    """A folder of ours, diffusers' or Wan's; or of shards of a single file, without config.json."""
    if (path / "transformer_2").is_dir():
        raise AnchorEditError(f"{path} holds two transformers (Wan 2.2)", "Only Wan 2.1 text-to-video can edit")
    if (path / "transformer").is_dir():
        return _read_folder(path / "transformer")
    files = _folder_shards(path)
    config_file = path / "config.json"
    settings = _json_object(config_file, config_file.read_bytes()) if config_file.is_file() else {}
    return _read_safetensors(path, files, settings)


def _folder_shards(path: Path) -> list[Path]:
    """The .safetensors files that make up the one model in folder `path`."""
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        weight_map = _json_object(indexes[0], indexes[0].read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise AnchorEditError(f"{indexes[0]} is not an index of shards in its own folder", "Download it again")
        return _all_present([path / name for name in sorted(set(weight_map.values()))])
    models = {tuple(_shards(file)) for file in sorted(path.glob("*.safetensors"))}
    if not models:
        raise AnchorEditError(
            f"{path} holds no .safetensors weights", "Give the folder of a Wan 2.1 transformer, or a checkpoint file"
        )
    if len(models) > 1:
        raise AnchorEditError(f"{path} holds {len(models)} models", "Name one of its files instead of the folder")
    return list(models.pop())


def _shards(file: Path) -> list[Path]:
    """All parts of the model that `file` is a part of (`_part1of2`, `-00001-of-00002`), or `file` alone."""
    match = _SHARD.fullmatch(file.name)
    if not match:
        return [file]
    stem, word, index, of, count = match.group("stem", "word", "index", "of", "count")
    names = [f"{stem}{word}{i:0{len(index)}d}{of}{count}.safetensors" for i in range(1, int(count) + 1)]
    return _all_present([file.with_name(name) for name in names])


def _all_present(files: list[Path]) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise AnchorEditError(f"{file} is missing, 1 of {len(files)} parts of the model", "Download it again")
    return files


def _kind(path: Path) -> str:
    """`safetensors`, `zip` or `pickle`, by the first bytes; anything else is an error."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise AnchorEditError(f"{path} is empty", "Download it again")
    if start.startswith(b"GGUF"):
        raise AnchorEditError(f"{path} is a GGUF file", "Load it in ComfyUI with a GGUF loader, or give .safetensors")
    if start.startswith(b"PK\x03\x04"):
        try:
            whole = zipfile.is_zipfile(path)  # its table of contents is at the end
        except zipfile.BadZipFile:
            whole = False
        if not whole:
            raise _damaged(path, "its end is missing")
        return "zip"
    # https://github.com/huggingface/safetensors#format: length of the header, then the header, which is JSON. This
    # comes before pickles, because such a length may begin as they do.
    if len(start) == 9 and int.from_bytes(start[:8], "little") <= 100_000_000 and start[8:] == b"{":
        return "safetensors"
    if start.startswith(b"\x80"):
        return "pickle"
    raise AnchorEditError(f"{path} is neither safetensors nor a PyTorch checkpoint", "Give a Wan 2.1 checkpoint")


def _damaged(path: Path, reason: Any) -> AnchorEditError:
    reason = str(reason).split("\n")[0][:120]
    return AnchorEditError(f"{path} ({path.stat().st_size} bytes) is damaged or cut short ({reason})", "Copy it again")


def _json_object(source: Path | str, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise AnchorEditError(f"{source} is not a JSON object", "Download or save it again")
    return value


# ------------------------------------------------------------------------------------------------ safetensors


def _read_safetensors(source: Path, files: list[Path], settings: dict[str, Any]) -> RawCheckpoint:
    """The model in `files`, with `settings` from config.json (empty: there is none) or else from the metadata."""
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        _kind(file)  # says more about a wrong file than safetensors does
        try:
            with safe_open(file, framework="pt") as shard:
                metadata.update(shard.metadata() or {})
                for name in shard.keys():
                    if name in weights:
                        raise AnchorEditError(f"{file} repeats the weight {name} of another part", "Download it again")
                    weights[name] = shard.get_tensor(name)
        except SafetensorError as error:
            raise _damaged(file, error) from None
    if settings:
        layout, declared, edit = _read_settings(source / "config.json", settings)
    else:
        layout, declared, edit = _read_metadata(source, metadata)
    return RawCheckpoint(weights, layout, declared, edit, len(files))


def _read_settings(source: Path, settings: dict[str, Any]) -> tuple[str, dict[str, Any], EditConfig | None]:
    """Layout, declared sizes and edit settings out of a config.json."""
    class_name = settings.get("_class_name")
    if isinstance(settings.get("transformer"), dict) and isinstance(settings.get("edit"), dict):
        _check_model_type(source, settings["transformer"])
        return "anchoredit", from_comfy_json(settings["transformer"]), EditConfig.from_json(settings["edit"])
    if class_name == "WanTransformer3DModel":
        return "diffusers", from_diffusers_json(settings), None
    if "dim" in settings and class_name in (None, "WanModel"):
        _check_model_type(source, settings)
        return "wan", from_comfy_json(settings), None
    raise AnchorEditError(
        f"{source} describes {class_name or 'no known model'}, not a Wan 2.1 text-to-video transformer",
        "Give a folder of AnchorEdit, diffusers (WanTransformer3DModel) or Wan (WanModel)",
    )


def _read_metadata(source: Path, metadata: dict[str, str]) -> tuple[str, dict[str, Any], EditConfig | None]:
    """The same out of a file's metadata: `config` holds the sizes bare or, for ComfyUI, under `transformer`."""
    config = _json_object(f"the metadata `config` of {source}", metadata["config"]) if "config" in metadata else {}
    sizes = config["transformer"] if isinstance(config.get("transformer"), dict) else config
    _check_model_type(source, sizes)
    if "anchoredit" not in metadata:
        return "comfyui", from_comfy_json(sizes), None
    edit = _json_object(f"the metadata `anchoredit` of {source}", metadata["anchoredit"])
    return "anchoredit", from_comfy_json(sizes), EditConfig.from_json(edit)


def _check_model_type(source: Path, sizes: dict[str, Any]) -> None:
    if sizes.get("model_type", "t2v") != "t2v":
        raise AnchorEditError(
            f"{source} has model_type {sizes['model_type']!r}", "Only Wan's text-to-video (t2v) can edit"
        )


# ------------------------------------------------------------------------------------------------ pickles


def _unpickle(path: Path, is_zip: bool) -> Any:
    """The content of a PyTorch file if it is plain data; nothing that it names is ever imported or called."""
    # Bare pickles (before PyTorch 1.6) and open files can't be mapped; a path with this suffix is no pickle to torch.
    mapped = is_zip and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"names the Python object {named[1]}" if named else "holds more than plain tensors"
        raise AnchorEditError(
            f"{path} {what}, so it was not opened, as that could run code",
            "Get it as .safetensors, or save it again with tensors only on a machine that may trust it",
        ) from None
    except Exception as error:  # damaged pickles fail in every way there is
        raise _damaged(path, error) from None


def _pick_weights(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a .pt holds, and the layout; the averaged weights are those the paper evaluates."""
    if not isinstance(content, dict):
        raise AnchorEditError(f"{path} holds a {type(content).__name__}", "Give a dict of weights")
    found = [name for name in ("generator_ema", "generator", "model") if isinstance(content.get(name), dict)]
    chosen = next((name for name in found if content[name]), None)
    weights = content if chosen is None else content[chosen]
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise AnchorEditError(
                f"{path} holds {name!r}, a {type(value).__name__}, where weights should be",
                "Give a state dict, or a dict with `generator_ema` or `generator`",
            )
    return weights, "published" if chosen in ("generator_ema", "generator") else "state_dict"
