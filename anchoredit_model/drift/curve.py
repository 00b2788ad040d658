"""A session's drift by turn: every image against the anchor, each kind of change by itself.

What nobody asked to change should stay. Where turns have masks, that is what lies outside all of them, and only that
is measured. Without masks an edit that was asked for counts as change as well: a step that stays where it is is an
edit, a slope is drift.

Measured at the size that the model works at, and where a turn redraws the whole image the anchor is taken through
the same scaling, so that a resolution that no turn can have is not taken for drift. Shifts are in pixels of the source.

Legend: H W the source's size, h w the size of the image within the work canvas.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AnchorEditError
from ..geometry import Geometry
from ..memory.anchor_memory import AnchorMemory
from .metrics import SMALLEST_SIDE, colour_drift, grey, sharpness, ssim
from .registration import Alignment, align, laid_back

# The shorter side, in pixels, at which the authors of SSIM advise to use it (ssim.m: "suggested usage").
LIKENESS_SIDE = 256
_COARSE = 4  # times larger: detail that little blur leaves alone, and that a change of contrast changes as much
_WHOLLY = 0.99  # a pixel of a scaled mask is inside if it was covered, but for rounding
_MOST_CONTRAST = 4.0  # an image is not stretched further than this to match the anchor's contrast


@dataclass(frozen=True)
class TurnDrift:
    """One turn against the anchor. What cannot be measured is None.

    likeness: structural similarity to the anchor, after shift, scale, brightness and contrast were matched, -1..1;
        1 is the same drawing. It says how much of the drawing is the same, in or out of tune; it knows no faces.
    colour: mean CIE76 distance of a pixel from the anchor's, at least 0; about 2 can just be seen.
    cast: CIE76 distance of the mean colours, at least 0: what the whole image has in common, such as yellowing.
    right, down: shift of the content in pixels of the source.
    scale: size of the content as a factor, minus 1.
    sharpness: log2 of the energy of fine detail over the anchor's, less that of detail four times as coarse, so that a
        darker image is not a blurred one; -1 is half of it (blurrier), +1 twice.
    measured: part of the image that was looked at, 0..1.
    """

    turn: int
    likeness: float | None = None
    colour: float | None = None
    cast: float | None = None
    right: float | None = None
    down: float | None = None
    scale: float | None = None
    sharpness: float | None = None
    measured: float = 0.0
    instruction: str = ""


def drift_curve(
    memory: AnchorMemory, image: Callable[[int, Tensor | None], Tensor], subject: Tensor | None = None
) -> Iterator[TurnDrift]:
    """Measures turn after turn, from the anchor (turn 0, no drift) on.

    `image(turn, before)` makes the image [3, H, W] of a turn from the one before it, as the pipeline does.
    `subject` [H, W] limits what is looked at to where it is above 1/2, such as a face. Raises AnchorEditError if it is
    of another size or black.
    """
    geometry = memory.geometry
    if min(geometry.content_height, geometry.content_width) < SMALLEST_SIDE:
        raise AnchorEditError(
            f"the image is worked on at {geometry.content_width}x{geometry.content_height} pixels, too few to "
            f"measure drift",
            f"Start with one of at least {SMALLEST_SIDE} each way",
        )
    untouched = _subject(subject, memory)
    anchor, now = _content(memory.image, geometry), None
    rescaled = _content(geometry.from_work(geometry.to_work(memory.image[None]))[0], geometry)
    for number, turn in enumerate(memory.turns):
        now = image(number, now)
        if turn.mask is not None:
            untouched = untouched & (turn.mask[0] <= 0)
        elif number:  # from here on no pixel is the source's own
            anchor = rescaled
        yield _measure(number, turn.instruction, _content(now, geometry), anchor, untouched, geometry)


def table(curve: list[TurnDrift]) -> str:
    """Comma-separated values: a line of names, then a line per turn. Empty where nothing could be measured."""
    names = [field.name for field in fields(TurnDrift)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for turn in curve:
        values = (getattr(turn, name) for name in names)
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


def likeness(
    image: Tensor, reference: Tensor, place: Alignment | None = None, mask: Tensor | None = None
) -> float | None:
    """SSIM of two images [3, h, w], once `image` is laid back by `place` and has the brightness of the reference.

    At 256 pixels of the shorter side, where the mask [h, w] is 1; None if too little of it remains.
    """
    height, width = reference.shape[1:]
    factor = min(1.0, LIKENESS_SIDE / min(height, width))
    size = [max(SMALLEST_SIDE, round(side * factor)) for side in (height, width)]
    x, y = (_scaled(grey(each)[None], size)[0] for each in (image, reference))
    seen = torch.ones_like(x, dtype=torch.bool)
    if place is not None:
        place = replace(place, dx=place.dx * size[1] / width, dy=place.dy * size[0] / height)
        x, seen = laid_back(x, place)
    if mask is not None:
        seen = seen & (_scaled(mask[None].float(), size)[0] > _WHOLLY)
    if not seen.any():
        return None
    inside_x, inside_y = x[seen], y[seen]
    contrast = inside_y.std(unbiased=False) / inside_x.std(unbiased=False).clamp(min=1e-6)
    x = (x - inside_x.mean()) * contrast.clamp(max=_MOST_CONTRAST) + inside_y.mean()
    return ssim(x.expand(3, -1, -1), y.expand(3, -1, -1), seen)


def relative_sharpness(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Sharpness of two images [3, h, w], less what happened to their coarser detail where the mask [h, w] is 1."""
    size = [max(SMALLEST_SIDE, side // _COARSE) for side in image.shape[1:]]
    coarse, coarse_reference = _scaled(image, size), _scaled(reference, size)
    coarse_mask = None if mask is None else _scaled(mask[None].float(), size)[0] > _WHOLLY
    if coarse_mask is not None and not coarse_mask.any():
        return sharpness(image, reference, mask)
    return sharpness(image, reference, mask) - sharpness(coarse, coarse_reference, coarse_mask)


def _measure(
    number: int, instruction: str, image: Tensor, anchor: Tensor, untouched: Tensor, geometry: Geometry
) -> TurnDrift:
    where = _content(untouched[None].float(), geometry)[0] > _WHOLLY  # [h, w]
    measured = float(where.float().mean())
    if not measured:
        return TurnDrift(number, instruction=instruction)
    mask = None if where.all() else where
    colours = colour_drift(image, anchor, mask)
    place = align(grey(image), grey(anchor), mask)
    known = place.known
    return TurnDrift(
        number,
        likeness=likeness(image, anchor, place, mask),
        colour=colours.delta_e,
        cast=math.hypot(colours.dl, colours.da, colours.db),
        right=place.dx * geometry.input_width / geometry.content_width if known else None,
        down=place.dy * geometry.input_height / geometry.content_height if known else None,
        scale=place.scale if known else None,
        sharpness=relative_sharpness(image, anchor, mask),
        measured=measured,
        instruction=instruction,
    )


def _subject(subject: Tensor | None, memory: AnchorMemory) -> Tensor:
    """True [H, W] where the artist wants to know."""
    height, width = memory.image.shape[1:]
    if subject is None:
        return torch.ones(height, width, dtype=torch.bool)
    if subject.shape != (height, width):
        raise AnchorEditError(
            f"the mask is {subject.shape[1]}x{subject.shape[0]}, the image {width}x{height}",
            "Draw the mask at the image's size",
        )
    if not (subject > 0.5).any():
        raise AnchorEditError("the mask is black everywhere", "Paint white what should be measured")
    return subject.cpu() > 0.5


def _content(image: Tensor, geometry: Geometry) -> Tensor:
    """An image [C, H, W] as it lies within the work canvas [C, h, w], values in 0..1."""
    rows = slice(geometry.content_top, geometry.content_top + geometry.content_height)
    columns = slice(geometry.content_left, geometry.content_left + geometry.content_width)
    return geometry.to_work(image.float().cpu().clamp(0, 1)[None])[0, :, rows, columns]


def _scaled(image: Tensor, size: list[int]) -> Tensor:
    """[C, h, w] at another size, every pixel counted."""
    if list(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
