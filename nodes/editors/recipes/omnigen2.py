"""OmniGen2 (https://arxiv.org/abs/2506.18871): dual guidance, of the text and of the images."""

from __future__ import annotations

from .base import Recipe
from .text import encode_literally

OMNIGEN2 = Recipe(
    name="OmniGen2",
    space="flux",
    tokenizers=("Omnigen2Tokenizer",),
    clip="Qwen2.5-VL 3B (CLIP type omnigen2)",
    encode=encode_literally,
    steps=20,
    cfg=5.0,
    image_cfg=2.0,
    max_references=5,  # it has an embedding for each of five
)
