"""How an image fits the canvas that the model works on: buckets, padding, the way back, compositing.

The model works at a few fixed sizes (aspect-ratio buckets). An image of any other size is scaled as a whole to fit
inside the nearest bucket, and the rest of the canvas is padded by repeating its edge. The way back crops that
content out of the canvas and scales it to exactly the input's size, so no pixel is lost and nothing shifts.

Legend: B batch, C channels (3 for images, 1 for masks), H W the input's size, h w the work size, in pixels.
Sizes are (height, width) in code and "width x height" in sentences for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import AnchorEditError


def buckets(resolution: int, step: int, max_aspect_ratio: float) -> list[tuple[int, int]]:
    """List the work sizes (h, w), tallest first.

    `resolution` is the side in pixels of the square whose area no bucket exceeds, `step` divides every side,
    `max_aspect_ratio` limits longer / shorter side. Raises AnchorEditError if no bucket meets these.
    """
    if step < 1 or resolution < step or resolution % step or not max_aspect_ratio >= 1:
        raise AnchorEditError(
            f"resolution must be a multiple of the step {step}, with an aspect ratio of 1 or more, got {resolution} "
            f"and {max_aspect_ratio}",
            f"Use a multiple of {step} and an aspect ratio of 1 or more",
        )
    area = resolution * resolution
    height, width = area // step, step
    sizes = []
    # A walk along the curve height * width = area: wider while the area allows it, else less high.
    while height >= step:
        if max(height, width) / min(height, width) <= max_aspect_ratio:
            sizes.append((height, width))
        if height * (width + step) <= area:
            width += step
        else:
            height -= step
    return sizes


def nearest_bucket(height: int, width: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Choose the bucket (h, w) nearest to an image in h / w, then in area, then by order."""

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        h, w = size
        return abs(height / width - h / w), abs(height * width - h * w)

    return min(buckets, key=distance)


@dataclass(frozen=True)
class Geometry:
    """Map one input image into its work canvas and back; all numbers in pixels.

    The content is a rectangle on whole pixels of the canvas. Each axis is scaled by exactly content / input, both
    ways, so `to_work` and `from_work` are inverse maps of the plane: rounding the content's size stretches it by
    half a pixel at most and never shifts it.
    """

    input_height: int
    input_width: int
    work_height: int
    work_width: int
    content_top: int
    content_left: int
    content_height: int
    content_width: int

    def __post_init__(self):
        sound = (
            all(type(value) is int for value in asdict(self).values())
            and min(self.input_height, self.input_width, self.content_height, self.content_width) >= 1
            and min(self.content_top, self.content_left, self.pad_below, self.pad_right) >= 0
        )
        if not sound:
            raise AnchorEditError(f"geometry {asdict(self)} contradicts itself", "Make it with fit()")

    @property
    def pad_below(self) -> int:
        """Return the rows of padding below the content."""
        return self.work_height - self.content_top - self.content_height

    @property
    def pad_right(self) -> int:
        """Return the columns of padding right of the content."""
        return self.work_width - self.content_left - self.content_width

    def to_work(self, image: Tensor) -> Tensor:
        """Put an image or mask [B, C, H, W], 0..1, into its canvas [B, C, h, w].

        Without scaling the content keeps its bits; without padding either, the result is `image` itself. Raises
        AnchorEditError if `image` does not have the input's size.
        """
        self._check("image", image, self.input_height, self.input_width)
        content = _resize(image, self.content_height, self.content_width)
        padding = (self.content_left, self.pad_right, self.content_top, self.pad_below)
        return F.pad(content, padding, mode="replicate") if any(padding) else content

    def from_work(self, image: Tensor) -> Tensor:
        """Crop the content out of a canvas [B, C, h, w], 0..1, and scale it to the input's size [B, C, H, W].

        The result may share storage with `image`. Raises AnchorEditError if `image` does not have the work size.
        """
        self._check("work image", image, self.work_height, self.work_width)
        rows = slice(self.content_top, self.content_top + self.content_height)
        columns = slice(self.content_left, self.content_left + self.content_width)
        return _resize(image[..., rows, columns], self.input_height, self.input_width)

    def describe(self) -> str:
        """Return one line: "works at 832x1216 (input 1024x1500, scaled by 0.811, padded 1 px left, 1 px right)"."""
        work, source = f"{self.work_width}x{self.work_height}", f"{self.input_width}x{self.input_height}"
        if work == source:
            return f"works at {work} (the input's own size)"
        # of the longer side, which rounding changes least
        if self.content_height > self.content_width:
            scale = self.content_height / self.input_height
        else:
            scale = self.content_width / self.input_width
        scaling = "not scaled" if scale == 1 else f"scaled by {scale:.3g}" if scale < 100 else f"scaled by {scale:.0f}"
        sides = {
            "above": self.content_top,
            "below": self.pad_below,
            "left": self.content_left,
            "right": self.pad_right,
        }
        padding = ", ".join(f"{pixels} px {side}" for side, pixels in sides.items() if pixels)
        return f"works at {work} (input {source}, {scaling}, {f'padded {padding}' if padding else 'not padded'})"

    def to_json(self) -> dict[str, int]:
        """Return a plain dict that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> Geometry:
        """Read a dict of `to_json`; raises AnchorEditError if a number is missing, unknown or impossible."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or sorted(data) != sorted(names):
            raise AnchorEditError(
                f"geometry must have the keys {', '.join(names)}, got {data!r}", "Make it with to_json()"
            )
        return cls(**data)

    @staticmethod
    def _check(what: str, image: Tensor, height: int, width: int) -> None:
        if image.ndim != 4 or not image.is_floating_point():
            raise ValueError(f"{what} must be float [B, C, height, width], got {image.dtype} {list(image.shape)}")
        if image.shape[-2:] != (height, width):
            raise AnchorEditError(
                f"{what} must be {width}x{height} as the session's, got {image.shape[-1]}x{image.shape[-2]}",
                "Resize it, or start a new session",
            )


def fit(height: int, width: int, resolution: int = 1024, step: int = 64, max_aspect_ratio: float = 4.0) -> Geometry:
    """Fit an image of `height` x `width` pixels into its nearest bucket (see `buckets`).

    An image more elongated than `max_aspect_ratio` goes into the most elongated bucket and is padded.
    """
    _check_size("image", height, width)
    return fit_into(height, width, *nearest_bucket(height, width, buckets(resolution, step, max_aspect_ratio)))


def fit_into(height: int, width: int, work_height: int, work_width: int) -> Geometry:
    """Fit an image of `height` x `width` pixels into a canvas, as large as possible and centred."""
    _check_size("image", height, width)
    _check_size("work size", work_height, work_width)
    # In whole numbers, so that the side that fills the canvas fills it exactly. The other one is rounded and
    # keeps at least one pixel, however elongated the image is.
    if height * work_width >= width * work_height:
        content_height, content_width = work_height, max(1, _divide_rounded(width * work_height, height))
    else:
        content_height, content_width = max(1, _divide_rounded(height * work_width, width)), work_width
    return Geometry(
        input_height=height,
        input_width=width,
        work_height=work_height,
        work_width=work_width,
        content_top=(work_height - content_height) // 2,
        content_left=(work_width - content_width) // 2,
        content_height=content_height,
        content_width=content_width,
    )


def composite(edited: Tensor, previous: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Blend the edit into the previous image, inside the mask only.

    `edited` and `previous` are [B, C, H, W], `mask` is [B or 1, 1, H, W]: 0 outside, 1 inside, between for a
    soft mask. The edit fades in over `feather` pixels inward from the mask's edge; the border of the image does
    not count as an edge. Where the mask is 0 the result has the bits of `previous`, deeper than `feather` inside
    a hard mask those of `edited`. Raises AnchorEditError if sizes differ.
    """
    if edited.shape != previous.shape or mask.shape[-2:] != edited.shape[-2:]:
        raise AnchorEditError(
            f"mask {list(mask.shape)}, edited {list(edited.shape)} and previous {list(previous.shape)} images must "
            "have one size",
            "Give a mask of the image's own size",
        )
    if feather < 0:
        raise AnchorEditError(f"feather must be 0 or more, got {feather}", "Use 0 (hard edge) or more")
    result = previous.clone()
    # All work is done in a box around the mask, with one pixel more so that the mask's edge is in it.
    inside = (mask > 0).any(dim=0)[0]  # [H, W]
    box = (..., _around(inside.any(dim=1)), _around(inside.any(dim=0)))
    mask, edited, previous = mask[box], edited[box], previous[box]
    alpha = mask.to(edited).clamp(0, 1)
    if feather:
        alpha = alpha * (_depth(mask > 0) / (feather + 1)).clamp(max=1).to(edited)
    # where() at both ends rather than arithmetic: 0 * NaN or a rounding error would break the promise.
    blended = torch.where(alpha >= 1, edited, torch.lerp(previous, edited, alpha))
    result[box] = torch.where(alpha > 0, blended, previous)
    return result


def _around(inside: Tensor) -> slice:
    """Return the range from one before the first true index of `inside` [n] to one after the last."""
    indices = inside.nonzero().flatten().tolist()
    return slice(max(0, indices[0] - 1), indices[-1] + 2) if indices else slice(0)


def _depth(inside: Tensor) -> Tensor:
    """Return the distance in pixels of each pixel [B, 1, H, W] to the nearest one outside, float32 on the CPU."""
    from scipy.ndimage import distance_transform_edt  # here, because only masked turns need it

    depths = [
        # undefined without any pixel outside
        np.full(each.shape, np.inf) if each.all() else np.asarray(distance_transform_edt(each))
        for each in inside[:, 0].cpu().numpy()
    ]
    return torch.from_numpy(np.stack(depths)).float()[:, None]


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resample [B, C, H, W] to [B, C, height, width], bicubic and antialiased, clamped to 0..1."""
    if image.shape[-2:] == (height, width):
        return image
    resized = F.interpolate(
        image.float(), size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )  # in float32: half precision is not supported everywhere, and loses whole grey levels
    return resized.clamp_(0, 1).to(image.dtype)  # bicubic overshoots at edges


def _divide_rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _check_size(what: str, height: int, width: int) -> None:
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1):
        raise AnchorEditError(
            f"{what} must be 1x1 pixels or more, got {width}x{height}", "Give whole numbers of 1 or more"
        )
