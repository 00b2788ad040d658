"""Where an image sits in the canvas the model works on: buckets, padding and the way back.

The model works at a few fixed sizes (buckets). An image of any other size is scaled, whole, to fit inside
the nearest bucket and the rest of the canvas is filled by repeating its edge. The way back cuts that content
out and scales it to exactly the input's size, so nothing is cropped and nothing shifts.

Shapes: B batch, C channels (3 for images, 1 for masks), H W the input's size, h w the work size, in pixels.
Sizes are (height, width) in code and "width x height" in sentences for people.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import AnchorEditError


def buckets(base: int, step: int, ratio: float) -> list[tuple[int, int]]:
    """List the work sizes (h, w), tallest first.

    `base` is the side in pixels of the square whose area no bucket exceeds, `step` the grid every side lies
    on, `ratio` the largest long side / short side. Raises AnchorEditError if these describe no bucket.
    """
    if step < 1 or base < step or base % step or not ratio >= 1:
        raise AnchorEditError(
            f"area {base} has no sizes in steps of {step} and ratios up to {ratio}",
            f"Use a multiple of {step} and a ratio of at least 1",
        )
    area = base * base
    height, width = area // step, step
    sizes = []
    # A walk along the curve height * width = area: wider while the area allows it, else less high.
    while height >= step:
        if max(height, width) / min(height, width) <= ratio:
            sizes.append((height, width))
        if height * (width + step) <= area:
            width += step
        else:
            height -= step
    return sizes


def nearest_bucket(height: int, width: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Choose the bucket (h, w) for an image: nearest h / w, among equals the nearest area, then the first."""

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        h, w = size
        return abs(height / width - h / w), abs(height * width - h * w)

    return min(buckets, key=distance)


@dataclass(frozen=True)
class Geometry:
    """How one input image sits in its work canvas; all in pixels.

    The content is a rectangle on whole pixels of the canvas. Each axis is scaled by exactly
    content / input, both ways, so `to_work` and `from_work` are inverse maps of the plane: what the
    rounding of the content's size costs is half a pixel of stretch inside the canvas, never a shift.
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
            raise AnchorEditError(f"geometry {asdict(self)} does not hold together", "Make it with fit()")

    @property
    def pad_below(self) -> int:
        """Rows of filling below the content."""
        return self.work_height - self.content_top - self.content_height

    @property
    def pad_right(self) -> int:
        """Columns of filling right of the content."""
        return self.work_width - self.content_left - self.content_width

    def to_work(self, image: Tensor) -> Tensor:
        """Place an image or mask [B, C, H, W], 0..1, in its canvas [B, C, h, w].

        Where nothing needs scaling the content keeps its bits; with nothing to pad either, the result is
        `image` itself. Raises AnchorEditError if `image` is not of the input's size.
        """
        self._check("image", image, self.input_height, self.input_width)
        content = _resize(image, self.content_height, self.content_width)
        padding = (self.content_left, self.pad_right, self.content_top, self.pad_below)
        return F.pad(content, padding, mode="replicate") if any(padding) else content

    def from_work(self, image: Tensor) -> Tensor:
        """Cut the content out of a canvas [B, C, h, w], 0..1, and give it the input's size [B, C, H, W].

        The result may share storage with `image`. Raises AnchorEditError if `image` is not of the work size.
        """
        self._check("work image", image, self.work_height, self.work_width)
        rows = slice(self.content_top, self.content_top + self.content_height)
        columns = slice(self.content_left, self.content_left + self.content_width)
        return _resize(image[..., rows, columns], self.input_height, self.input_width)

    def describe(self) -> str:
        """Say it in a line: "works at 832x1216 (input 1024x1500, scaled by 0.811, padded 1 px left, 1 px right)"."""
        work, source = f"{self.work_width}x{self.work_height}", f"{self.input_width}x{self.input_height}"
        if work == source:
            return f"works at {work} (the input's own size)"
        # The longer side of the content tells the scale best: it suffers least from rounding.
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
        """Give a plain dict that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> "Geometry":
        """Read what `to_json` made. Raises AnchorEditError if a number is missing, unknown or impossible."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or sorted(data) != sorted(names):
            raise AnchorEditError(f"geometry {data!r} is not readable", f"It needs exactly {', '.join(names)}")
        return cls(**data)

    @staticmethod
    def _check(what: str, image: Tensor, height: int, width: int) -> None:
        if image.ndim != 4 or not image.is_floating_point():
            raise ValueError(f"{what} must be float [B, C, height, width], not {image.dtype} {list(image.shape)}")
        if image.shape[-2:] != (height, width):
            raise AnchorEditError(
                f"{what} is {image.shape[-1]}x{image.shape[-2]}, this session expects {width}x{height}",
                "Resize it, or start a new session",
            )


def fit(height: int, width: int, area_base: int = 1024, step: int = 64, ratio: float = 4.0) -> Geometry:
    """Fit an image of `height` x `width` pixels into its nearest bucket (see `buckets`).

    An image more elongated than `ratio` goes into the most elongated bucket and is padded.
    """
    _check_size("image", height, width)
    return fit_into(height, width, *nearest_bucket(height, width, buckets(area_base, step, ratio)))


def fit_into(height: int, width: int, work_height: int, work_width: int) -> Geometry:
    """Fit an image of `height` x `width` pixels into a canvas of a given size, as large as it goes, centred."""
    _check_size("image", height, width)
    _check_size("work size", work_height, work_width)
    # Whole numbers only, so that the side that fills the canvas fills it exactly. The other one is rounded,
    # and keeps at least one pixel however elongated the image is.
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
    """Put the edit into the previous image, inside the mask only.

    `edited` and `previous` are [B, C, H, W], `mask` is [B or 1, 1, H, W]: 0 outside, 1 inside, between for a
    soft mask. The edit fades in over `feather` pixels inward from the mask's border; the image's own border
    is none. Where the mask is 0 the result has the bits of `previous`, in the core those of `edited`; a mask
    thinner than twice the feather has no such core. Raises AnchorEditError if sizes differ.
    """
    if edited.shape != previous.shape or mask.shape[-2:] != edited.shape[-2:]:
        raise AnchorEditError(
            f"mask {list(mask.shape)}, edited {list(edited.shape)} and previous {list(previous.shape)} images "
            "differ in size",
            "Give a mask of the image's own size",
        )
    if feather < 0:
        raise AnchorEditError(f"feather is {feather} px", "Use 0 (hard) or more")
    result = previous.clone()
    # All work is done in a box around the mask, with one pixel more so that the mask's border is in it.
    inside = (mask > 0).any(dim=0)[0]  # [H, W]
    box = (..., _around(inside.any(dim=1)), _around(inside.any(dim=0)))
    mask, edited, previous = mask[box], edited[box], previous[box]
    alpha = mask.to(edited).clamp(0, 1)
    if feather:
        alpha = alpha * (_depth(mask > 0, feather + 1) / (feather + 1)).to(edited)
    # where() at both ends rather than arithmetic: 0 * NaN or a rounding error would break the promise.
    blended = torch.where(alpha >= 1, edited, torch.lerp(previous, edited, alpha))
    result[box] = torch.where(alpha > 0, blended, previous)
    return result


def _around(inside: Tensor) -> slice:
    """From one before the first place of `inside` [n] that is true to one after the last."""
    places = inside.nonzero().flatten().tolist()
    return slice(max(0, places[0] - 1), places[-1] + 2) if places else slice(0)


def _depth(inside: Tensor, reach: int) -> Tensor:
    """Distance in pixels of each pixel [B, 1, H, W] to the nearest one not `inside`; `reach` where farther."""
    nearest = torch.where(inside, float(reach * reach), 0.0)
    shifted = torch.empty_like(nearest)
    # Squared Euclidean distance is separable: the best of (distance along one axis)^2 + shift^2 on the other.
    for axis in (-1, -2):
        squared, nearest = nearest, nearest.clone()
        for shift in range(1, min(reach, squared.shape[axis])):
            torch.add(squared, shift * shift, out=shifted)
            length = squared.shape[axis] - shift
            for here, there in ((0, shift), (shift, 0)):
                target = nearest.narrow(axis, here, length)
                torch.minimum(target, shifted.narrow(axis, there, length), out=target)
    return nearest.sqrt()


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resample [B, C, H, W] to [B, C, height, width]: pixel areas aligned, antialiased, kept in 0..1."""
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
        raise AnchorEditError(f"{what} is {width}x{height} px", "Give whole numbers of at least 1")
