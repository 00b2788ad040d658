"""The parts of a pipeline from a local folder or file, for use without ComfyUI."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from . import TINY
from .atomic_write import atomic_write
from .checkpoint.loading import load_transformer, read_checkpoint
from .checkpoint.saving import save_folder
from .config import TransformerConfig
from .errors import AnchorEditError
from .networks.backbone import TransformerBackbone
from .networks.text_encoder import TextEncoder
from .networks.vae import ImageVAE

_INDEX = "model_index.json"
Parts = tuple[TransformerBackbone, ImageVAE, TextEncoder]


def load_parts(path: str | Path, dtype: torch.dtype, device: str | torch.device) -> Parts:
    """Load backbone, VAE and text encoder; see `AnchorEditPipeline.from_pretrained`."""
    path = Path(os.path.expanduser(path))  # Path's own expanduser raises for a user it does not know
    if not path.exists():
        raise AnchorEditError(f"model '{path}' does not exist", "Give a folder or a weights file of this machine")
    weights = path / "transformer" if (path / "transformer").is_dir() else path
    folder = path if path.is_dir() else path.parent
    if not (folder / "vae").is_dir():
        folder = _folder_of_bundled_parts(weights)
    transformer, edit = load_transformer(weights, dtype, device)
    vae = ImageVAE.from_pretrained(folder / "vae", device)  # float32: in bfloat16 it loses grey levels
    text_dim = transformer.config.text_dim
    text_encoder = TextEncoder.from_pretrained(folder / "text_encoder", None, device, dtype, text_dim)
    return TransformerBackbone(transformer, edit), vae, text_encoder


def save_parts(folder: str | Path, parts: tuple[object, object, object], dtype: torch.dtype | None = None) -> None:
    """Write the folder that `load_parts` reads."""
    folder = Path(folder)
    backbone, vae, text_encoder = _own(parts)
    save_folder(folder / "transformer", backbone.transformer, backbone.config, backbone.edit, dtype)
    vae.save_pretrained(folder / "vae", dtype)
    text_encoder.save_pretrained(folder / "text_encoder")
    index = {"_class_name": "AnchorEditPipeline", "parts": ["transformer", "vae", "text_encoder"]}
    with atomic_write(folder / _INDEX, "model index") as unfinished:
        unfinished.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def move_parts(parts: tuple[object, object, object], device: str | torch.device) -> Parts:
    """Move the networks to a device."""
    backbone, vae, text_encoder = _own(parts)
    for part in (backbone.transformer, vae, text_encoder.model):
        part.to(device)
    return TransformerBackbone(backbone.transformer, backbone.edit), vae, text_encoder


def _own(parts: tuple[object, object, object]) -> Parts:
    """Return the parts if they are of the kinds that `load_parts` loads."""
    backbone, vae, text_encoder = parts
    if (
        isinstance(backbone, TransformerBackbone)
        and isinstance(vae, ImageVAE)
        and isinstance(text_encoder, TextEncoder)
    ):
        return backbone, vae, text_encoder
    raise TypeError(f"only parts of this package can be saved or moved, got {[type(part).__name__ for part in parts]}")


def _folder_of_bundled_parts(weights: Path) -> Path:
    """Find the bundled VAE and text encoder for weights of the bundled model's size, and for no others."""
    if read_checkpoint(weights).transformer_config == TransformerConfig.named("tiny"):
        return TINY
    raise AnchorEditError(
        f"'{weights}' has no folders vae and text_encoder with it",
        "Put Wan 2.1's there, as diffusers stores them",
    )
