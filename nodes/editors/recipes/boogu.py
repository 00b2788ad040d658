"""Boogu-Image-Edit. Its guidance keeps the images in both branches, and shows them to the text encoder in one."""

from __future__ import annotations

from .base import Recipe
from .text import encode_small

BOOGU = Recipe(
    name="Boogu-Image-Edit",
    space="flux",
    tokenizers=("BooguTokenizer",),
    clip="Boogu's Qwen3-VL (CLIP type boogu)",
    encode=encode_small,
    sees_images=True,
    negative_sees=False,
    steps=25,
    cfg=3.5,
    sampler="dpmpp_2m",
    max_references=5,
)
