"""Mage-Flow-Edit, whose positions want every reference at the target's size."""

from __future__ import annotations

from .base import Recipe
from .text import encode_long_side

MAGE_FLOW = Recipe(
    name="Mage-Flow-Edit",
    space="mage",
    tokenizers=("MageFlowTokenizer",),
    clip="Mage-Flow's Qwen3-VL (CLIP type mage_flow)",
    encode=encode_long_side,
    sees_images=True,
    negative_text=" ",
    steps=30,
    cfg=5.0,
    assumption="The MODEL does not tell Mage-Flow-Edit from its turbo: taken for the former, 30 steps, cfg 5.",
)
