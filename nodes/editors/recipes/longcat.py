"""LongCat-Image-Edit (https://github.com/meituan-longcat/LongCat-Image), which was made for one reference."""

from __future__ import annotations

from ....anchoredit_model.config import MemoryPolicy
from .base import Recipe
from .text import encode_single

LONGCAT = Recipe(
    name="LongCat-Image-Edit",
    space="flux",
    tokenizers=("LongCatImageTokenizer",),
    clip="Qwen2.5-VL 7B (CLIP type longcat_image)",
    encode=encode_single,
    sees_images=True,
    steps=50,
    cfg=4.5,
    method="index",
    policy=MemoryPolicy(anchor_frames=0, window=1),
    assumption="LongCat-Image-Edit was made for one reference, so a turn sees the newest image alone unless Memory "
    "Policy says otherwise. Plain LongCat-Image looks the same to AnchorEdit and cannot edit.",
)
