"""What makes weights a Wan 2.1 text-to-video transformer: their sizes, and every weight there, none left over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import AnchorEditError
from ..networks.transformer import CausalWanTransformer

LATENT_CHANNELS = 16  # of Wan 2.1's VAE; what conditions a model by extra channels is another model
HEAD_DIM = 128  # of every released Wan; a file of another head size says so in its metadata

# Words in a weight's name (Wan's or diffusers') that only models of other kinds have.
_OTHER_KINDS = {
    "img_emb": "an image-to-video model",
    "image_embedder": "an image-to-video model",
    "vace_blocks": "a VACE model",
    "vace_patch_embedding": "a VACE model",
    "control_adapter": "a camera-control model",
    "ref_conv": "a reference-control model",
    "face_adapter": "a character-animation model",
    "audio_injector": "a speech-to-video model",
}


def empty_model(config: TransformerConfig) -> CausalWanTransformer:
    """Return a transformer on the meta device, where its weights take no memory."""
    with torch.device("meta"):
        return CausalWanTransformer(config)


def refuse_other_kinds(weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise AnchorEditError if a weight's name says that the model is conditioned by more than text."""
    for name in weights:
        for word in name.split("."):
            if word in _OTHER_KINDS:
                raise AnchorEditError(f"{source} is {_OTHER_KINDS[word]} (it has {name})", "Give Wan 2.1 text-to-video")


def sizes_of(weights: Mapping[str, Tensor], declared: Mapping[str, Any], source: Path) -> TransformerConfig:
    """Derive sizes from the shapes of weights under Wan's own names.

    What the file's settings declare must agree, and adds what shapes do not show. Raises AnchorEditError if the
    weights are no such transformer's or contradict `declared`.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in weights:
            raise AnchorEditError(
                f"{source} holds no Wan 2.1 transformer (no {name}; it begins with {next(iter(weights), 'nothing')})",
                "Give a text-to-video checkpoint",
            )
        if weights[name].ndim != ndim:
            raise AnchorEditError(
                f"{name} in {source} must have {ndim} dimensions, got shape {tuple(weights[name].shape)}",
                "Give a complete Wan 2.1 checkpoint",
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
        "num_layers": count_layers(weights),
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
            f"the width {dim} of {source} must be divisible by its heads, got {num_heads} heads",
            "Put the right `num_heads` into its settings",
        )
    return TransformerConfig(**{**declared, **found, "num_heads": num_heads})


def count_layers(weights: Mapping[str, Tensor]) -> int:
    """Count the transformer blocks that have weights."""
    return len({match[1] for match in map(re.compile(r"blocks\.(\d+)\.").match, weights) if match})


def check_fit(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Raise AnchorEditError unless `weights` are exactly the model's, by name and shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse("missing", [name for name in wanted if name not in weights], source)
    _refuse("left over", [name for name in weights if name not in wanted], source)
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if tuple(weights[name].shape) != shape
    ]
    _refuse("of a wrong shape", wrong, source)


def check_names(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise AnchorEditError if the name of a weight is missing, as far as can be told without shapes."""
    layers = max(1, count_layers(weights))
    model = empty_model(TransformerConfig(dim=HEAD_DIM, ffn_dim=1, num_heads=1, num_layers=layers))
    _refuse("missing", [name for name in model.state_dict() if name not in weights], source)


def _refuse(problem: str, names: list[str], source: str) -> None:
    """Raise AnchorEditError for weights with a problem, naming up to five."""
    if names:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise AnchorEditError(
            f"{source} does not fit a Wan 2.1 text-to-video transformer: {len(names)} weights {problem} ({listed})",
            "Give a complete checkpoint of this size",
        )
