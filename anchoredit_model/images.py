"""Reading images of any common file format, and writing PNG.

An image is a float32 tensor [3, H, W], RGB, 0..1. An 8-bit image survives load and save bit for bit.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from .atomic_write import atomic_write
from .errors import AnchorEditError

log = logging.getLogger(__name__)

# Below Pillow's own limit (89 million): larger images take a gigabyte each as float32, and are scaled down to about
# one million pixels anyway.
MAX_PIXELS = 80_000_000


def load_image(path: str | os.PathLike) -> Tensor:
    """Read an image file as a float tensor [3, H, W], RGB, 0..1.

    The EXIF orientation is applied. Palette, grey, 16-bit, CMYK and transparent images become RGB (transparency
    over white, with a warning in the log); of an animation the first frame is read. Embedded colour profiles are
    not applied. Raises AnchorEditError if the file is missing, unreadable or too large.
    """
    path = Path(path)
    if not path.exists():
        raise AnchorEditError(f"image '{path}' does not exist", "Check the path")
    if path.is_dir():
        raise AnchorEditError(f"image '{path}' is a folder", "Name one image file in it")
    return _read(path, path)


def decode_image(data: bytes, name: str, formats: list[str] | tuple[str, ...] | None = None) -> Tensor:
    """Read an image from a file's content as `load_image` does.

    `name` is what errors call it, `formats` are those of Pillow to allow.
    """
    return _read(io.BytesIO(data), name, formats)


def _read(file: Path | io.BytesIO, name: str | Path, formats: list[str] | tuple[str, ...] | None = None) -> Tensor:
    try:
        with Image.open(file, formats=formats) as image:
            _check_readable(name, image)
            oriented = ImageOps.exif_transpose(image)
            pixels = _rgb(name, oriented)
    except AnchorEditError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, "") from None
    except Image.UnidentifiedImageError:
        raise AnchorEditError(f"'{name}' is not an image that Pillow can read", "Save it as PNG or JPEG") from None
    # Pillow's decoders report a damaged file in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AnchorEditError(
            f"image '{name}' cannot be read ({reason})", "Save it again, it may be damaged"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """Convert an image [3, H, W], 0..1, to an 8-bit RGB Pillow image; values outside 0..1 are clipped.

    Raises AnchorEditError if the image holds values that are not finite.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"image must be float [3, height, width], got {image.dtype} {list(image.shape)}")
    image = image.detach().float()
    if not image.isfinite().all():
        raise AnchorEditError("image holds NaN or infinite values", "Run the model or VAE in bfloat16 or float32")
    levels = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image to an image [3, H, W], 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def save_image(image: Tensor, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write an image [3, H, W], 0..1, as an 8-bit PNG, whole or not at all.

    `metadata` becomes PNG text chunks, key by key. An existing file is replaced. Raises AnchorEditError if the
    name does not end in .png, the folder is missing, read-only or full, or the image is not finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise AnchorEditError(f"the name of an image must end in .png, got '{path}'", "Change its suffix to .png")
    pil = to_pil(image)
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        text.add_text(key, value)
    with atomic_write(path, "image") as unfinished:
        pil.save(unfinished, format="PNG", pnginfo=text)


def _check_readable(path: str | Path, image: Image.Image) -> None:
    """Refuse, before decoding, what would exhaust the memory or has no defined range."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f" ({image.width}x{image.height})")
    if image.mode == "F":
        raise AnchorEditError(f"image '{path}' has 32-bit float pixels of unknown range", "Save it as 16-bit PNG")


def _too_large(path: str | Path, size: str) -> AnchorEditError:
    return AnchorEditError(
        f"image '{path}'{size} has more than {MAX_PIXELS // 1_000_000} million pixels", "Scale it down first"
    )


def _rgb(path: str | Path, image: Image.Image) -> np.ndarray:
    """Decode to float32 [H, W, 3], 0..1."""
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip instead of scale when converting to RGB.
        grey = np.asarray(image).astype(np.float32) / 65535
        return np.repeat(grey.clip(0, 1)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            log.warning("image '%s' is transparent in places, which become white", path)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
