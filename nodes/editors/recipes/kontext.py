"""FLUX.1 Kontext (https://arxiv.org/abs/2506.15742), which was trained on one reference."""

from __future__ import annotations

from typing import Any

from ....anchoredit_model.config import MemoryPolicy
from ....anchoredit_model.errors import AnchorEditError
from ...host.model_metadata import network_config
from .base import Recipe
from .text import encode_literally

KONTEXT = Recipe(
    name="FLUX.1 Kontext",
    space="flux",
    tokenizers=("FluxTokenizer",),
    clip="CLIP-L and T5-XXL (DualCLIPLoader, type flux)",
    encode=encode_literally,
    steps=20,
    cfg=1.0,
    guidance=2.5,
    policy=MemoryPolicy(anchor_frames=0, window=1),
    assumption="FLUX.1 Kontext was trained on one reference, so a turn sees the newest image alone unless Memory "
    "Policy says otherwise. Plain FLUX.1 dev looks the same to AnchorEdit and cannot edit.",
)


def kontext_recipe(patcher: Any) -> Recipe:
    """Refuse the FLUX.1 models that cannot edit."""
    config = network_config(patcher)
    if config.get("in_channels", 16) != 16:
        raise AnchorEditError(
            f"the MODEL takes {config['in_channels']} channels: FLUX.1 Fill, Canny or Depth", "Load FLUX.1 Kontext"
        )
    if not config.get("guidance_embed"):
        raise AnchorEditError("the MODEL is FLUX.1 schnell, which cannot edit", "Load FLUX.1 Kontext")
    return KONTEXT
