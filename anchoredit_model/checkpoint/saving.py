"""Saving the transformer in our own format, which ComfyUI reads as well.

save_checkpoint   one .safetensors under Wan's own names
save_folder       a folder holding that file and a readable config.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..config import EditConfig, TransformerConfig
from ..errors import AnchorEditError
from .keymap import to_comfy_json, unwrapped_weights
from .validation import check_fit, empty_model


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
    if the weights are not exactly those that `transformer_config` asks for, or the file cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise AnchorEditError(f"the name of a checkpoint must end in .safetensors, got {path.name}", "Add the suffix")
    source = f"the model to save as {path.name}"
    if isinstance(model_or_state_dict, nn.Module):
        model_or_state_dict = model_or_state_dict.state_dict()
    weights = unwrapped_weights(model_or_state_dict, source)
    check_fit(weights, empty_model(transformer_config), source)
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
