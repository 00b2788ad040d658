"""FLUX.2 dev and klein (https://github.com/black-forest-labs/flux2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...host.model_metadata import file_name, network_config
from ...host.sampling.guiders import FLUX2_SCHEDULER
from .base import Recipe
from .text import encode_text

FLUX2_DEV = Recipe(
    name="FLUX.2 dev",
    space="flux2",
    tokenizers=("Flux2Tokenizer",),
    clip="Mistral Small 24B (CLIP type flux2)",
    encode=encode_text,
    steps=20,
    cfg=1.0,
    guidance=4.0,
    scheduler=FLUX2_SCHEDULER,
    max_references=6,
)
KLEIN = replace(
    FLUX2_DEV,
    name="FLUX.2 klein",
    tokenizers=("KleinTokenizer", "KleinTokenizer8B"),
    clip="Qwen3 4B or 8B (CLIP type flux2), as the klein model's size",
    steps=4,
    guidance=None,
    max_references=4,
    assumption="The MODEL does not tell whether it is FLUX.2 klein or klein base: taken for klein, 4 steps, cfg 1.",
)
KLEIN_BASE = replace(KLEIN, name="FLUX.2 klein base", steps=20, cfg=5.0, assumption="")


def flux2_recipe(patcher: Any) -> Recipe:
    """Tell dev from klein, and klein from klein base where the file's name is known."""
    if network_config(patcher).get("guidance_embed"):
        return FLUX2_DEV
    name = file_name(patcher)
    if "base" in name:
        return KLEIN_BASE
    return replace(KLEIN, assumption="") if "klein" in name else KLEIN
