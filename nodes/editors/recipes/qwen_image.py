"""Qwen-Image-Edit, 2509 and 2511 (https://github.com/QwenLM/Qwen-Image); FireRed-Image-Edit loads as these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....anchoredit_model.config import MemoryPolicy
from ....anchoredit_model.errors import AnchorEditError
from ...host.model_metadata import file_name, network_config
from .base import Recipe
from .text import encode_numbered, encode_single

QWEN_2509 = Recipe(
    name="Qwen-Image-Edit 2509",
    space="wan21",
    tokenizers=("QwenImageTokenizer",),
    clip="Qwen2.5-VL 7B (CLIP type qwen_image)",
    encode=encode_numbered,
    sees_images=True,
    steps=20,
    cfg=4.0,
    max_references=3,
    assumption="The MODEL does not tell which Qwen-Image-Edit it is: taken for 2509.",
)
QWEN_2511 = replace(
    QWEN_2509,
    name="Qwen-Image-Edit 2511",
    steps=40,
    method="index_timestep_zero",
    assumption="",
)
QWEN_FIRST = replace(
    QWEN_2509,
    name="Qwen-Image-Edit",
    encode=encode_single,
    cfg=2.5,
    max_references=1,
    policy=MemoryPolicy(anchor_frames=0, window=1),
    assumption="",
)


def qwen_recipe(patcher: Any) -> Recipe:
    """Tell the versions apart, as far as they can be."""
    if network_config(patcher).get("use_additional_t_cond"):
        raise AnchorEditError("the MODEL is Qwen-Image-Layered, which edits layers", "Load Qwen-Image-Edit")
    if getattr(patcher.model.diffusion_model, "default_ref_method", "") == "index_timestep_zero":
        return QWEN_2511
    name = file_name(patcher)
    if "2511" in name:
        return QWEN_2511
    if "edit" in name and "2509" not in name and "firered" not in name:
        return QWEN_FIRST
    return replace(QWEN_2509, assumption="") if "2509" in name else QWEN_2509
