"""JoyAI-Image-Edit, which works at sizes in steps of 64."""

from __future__ import annotations

from .base import Recipe
from .text import encode_unscaled

JOY_IMAGE = Recipe(
    name="JoyAI-Image-Edit",
    space="wan21",
    tokenizers=("JoyImageTokenizer",),
    clip="JoyAI's Qwen3-VL (CLIP type joyimage)",
    encode=encode_unscaled,
    sees_images=True,
    steps=40,
    cfg=4.0,
    scheduler="normal",
    size_multiple=64,
    max_references=6,
)
