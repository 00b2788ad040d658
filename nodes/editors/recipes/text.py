"""How instructions are encoded, and the images that a vision-language text encoder sees beside them.

The templates are the CLIP's own. Images are [3, H, W] in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...host.sampling.guiders import Conditioning

_VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def encode_text(clip: Any, text: str, images: Sequence[Tensor] = ()) -> Conditioning:
    """Encode text alone, by a tokenizer that takes brackets literally by itself."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def encode_literally(clip: Any, text: str, images: Sequence[Tensor] = ()) -> Conditioning:
    """Encode text alone, brackets not being weights."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, disable_weights=True))


def encode_numbered(clip: Any, text: str, images: Sequence[Tensor]) -> Conditioning:
    """Encode text behind "Picture 1: ...", "Picture 2: ..." as Qwen-Image-Edit 2509 and later were trained."""
    template = clip.tokenizer.llama_template_images.replace(_VISION, "")
    seen = [_scaled(image, 384 * 384) for image in images]
    pictures = "".join(f"Picture {number}: {_VISION}" for number in range(1, len(seen) + 1))
    return clip.encode_from_tokens_scheduled(clip.tokenize(pictures + text, images=seen, llama_template=template))


def encode_single(clip: Any, text: str, images: Sequence[Tensor]) -> Conditioning:
    """Encode text beside the first image, at one megapixel."""
    seen = [_scaled(image, 1024 * 1024) for image in images[:1]]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, images=seen))


def encode_small(clip: Any, text: str, images: Sequence[Tensor]) -> Conditioning:
    """Encode text beside all images, each with the area of 384x384."""
    return clip.encode_from_tokens_scheduled(
        clip.tokenize(text, images=[_scaled(image, 384 * 384) for image in images])
    )


def encode_long_side(clip: Any, text: str, images: Sequence[Tensor]) -> Conditioning:
    """Encode text beside all images, their longer side at most 384."""
    seen = []
    for image in images:
        scale = min(1.0, 384 / max(image.shape[-2:]))
        size = tuple(max(1, round(side * scale)) for side in image.shape[-2:])
        scaled = image[None] if scale == 1 else F.interpolate(image[None], size, mode="bicubic")
        seen.append(scaled.movedim(1, -1))
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, images=seen))


def encode_unscaled(clip: Any, text: str, images: Sequence[Tensor]) -> Conditioning:
    """Encode text beside all images at their own size."""
    seen = [image[None].movedim(1, -1) for image in images]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, images=seen))


def _scaled(image: Tensor, pixels: int) -> Tensor:
    """Scale to an area, as the host's text encoding nodes do, and shape as its IMAGE [1, h, w, 3]."""
    height, width = image.shape[-2:]
    scale = math.sqrt(pixels / (height * width))
    scaled = F.interpolate(image[None], (round(height * scale), round(width * scale)), mode="area")
    return scaled.movedim(1, -1)
