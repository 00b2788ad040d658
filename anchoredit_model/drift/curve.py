"""The drift of a session by turn: every image against the anchor, one metric per kind of change.

What no instruction asked to change should be preserved. Where turns have masks, that is the region outside all of
them, and only this is measured. Without masks a requested edit counts as change as well: in the curve a single step
is an edit, a slope is drift.

Images are compared at the work size. Once a turn redraws the whole image, the anchor goes through the same scaling,
so that resolution beyond the work size does not count as drift. Shifts are in pixels of the source.

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

# The shorter side in pixels at which the authors of SSIM advise to use it (ssim.m, "suggested usage").
LIKENESS_SIDE = 256
_COARSE = 4  # scale of detail that a little blur leaves alone and a change of contrast changes as much
_INSIDE = 0.99  # a pixel of a scaled mask counts as inside if all of it was, up to rounding
_MAX_CONTRAST = 4.0  # factor by which an image is stretched at most to match the anchor's contrast


@dataclass(frozen=True)
class TurnDrift:
    """Hold the drift of one turn from the anchor. What cannot be measured is None.

    likeness     SSIM with the anchor after shift, scale, brightness and contrast were matched, -1..1; 1 is the same
                 structure. It measures structure, not the identity of a face.
    colour       mean CIE76 distance of a pixel from the anchor's, at least 0; about 2 is just visible
    cast         CIE76 distance of the mean colours, at least 0: a change common to the whole image, e.g. yellowing
    right, down  shift of the content in pixels of the source
    scale        size of the content as a factor, minus 1
    sharpness    log2 of the energy of fine detail over the anchor's, minus that of detail four times as coarse, so
                 that a darker image does not count as blurred; -1 is half of it (blurrier), +1 twice
    measured     fraction of the image that was compared, 0..1
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
    """Measure turn after turn, beginning with the anchor (turn 0, no drift).

    `image(turn, before)` returns the image [3, H, W] of a turn given the one before it, as the pipeline does.
    `subject` [H, W] limits the comparison to where it is above 1/2, e.g. a face. Raises AnchorEditError if it has
    another size or is black.
    """
    geometry = memory.geometry
    if min(geometry.content_height, geometry.content_width) < SMALLEST_SIDE:
        raise AnchorEditError(
            f"to measure drift the image must be edited at {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or more, got "
            f"{geometry.content_width}x{geometry.content_height}",
            "Start with a larger image",
        )
    preserved = _subject(subject, memory)
    anchor, now = _content(memory.image, geometry), None
    rescaled = _content(geometry.from_work(geometry.to_work(memory.image[None]))[0], geometry)
    for number, turn in enumerate(memory.turns):
        now = image(number, now)
        if turn.mask is not None:
            preserved = preserved & (turn.mask[0] <= 0)
        elif number:  # from here on every pixel has been at the work size
            anchor = rescaled
        yield _measure(number, turn.instruction, _content(now, geometry), anchor, preserved, geometry)


def table(curve: list[TurnDrift]) -> str:
    """Format the curve as CSV: a line of names, then a line per turn, empty where nothing could be measured."""
    names = [field.name for field in fields(TurnDrift)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for turn in curve:
        values = (getattr(turn, name) for name in names)
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


def likeness(
    image: Tensor, reference: Tensor, alignment: Alignment | None = None, mask: Tensor | None = None
) -> float | None:
    """Return the SSIM of two images [3, h, w] after alignment, brightness and contrast were matched.

    At 256 pixels of the shorter side, where the mask [h, w] is 1; None if too little of it remains.
    """
    height, width = reference.shape[1:]
    factor = min(1.0, LIKENESS_SIDE / min(height, width))
    size = [max(SMALLEST_SIDE, round(side * factor)) for side in (height, width)]
    x, y = (_scaled(grey(each)[None], size)[0] for each in (image, reference))
    seen = torch.ones_like(x, dtype=torch.bool)
    if alignment is not None:
        dx, dy = alignment.dx * size[1] / width, alignment.dy * size[0] / height
        x, seen = laid_back(x, replace(alignment, dx=dx, dy=dy))
    if mask is not None:
        seen = seen & (_scaled(mask[None].float(), size)[0] > _INSIDE)
    if not seen.any():
        return None
    inside_x, inside_y = x[seen], y[seen]
    contrast = inside_y.std(unbiased=False) / inside_x.std(unbiased=False).clamp(min=1e-6)
    x = (x - inside_x.mean()) * contrast.clamp(max=_MAX_CONTRAST) + inside_y.mean()
    return ssim(x.expand(3, -1, -1), y.expand(3, -1, -1), seen)


def relative_sharpness(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Return the change of sharpness of [3, h, w], minus that of coarser detail, where the mask [h, w] is 1."""
    size = [max(SMALLEST_SIDE, side // _COARSE) for side in image.shape[1:]]
    coarse, coarse_reference = _scaled(image, size), _scaled(reference, size)
    coarse_mask = None if mask is None else _scaled(mask[None].float(), size)[0] > _INSIDE
    if coarse_mask is not None and not coarse_mask.any():
        return sharpness(image, reference, mask)
    return sharpness(image, reference, mask) - sharpness(coarse, coarse_reference, coarse_mask)


def _measure(
    number: int, instruction: str, image: Tensor, anchor: Tensor, preserved: Tensor, geometry: Geometry
) -> TurnDrift:
    where = _content(preserved[None].float(), geometry)[0] > _INSIDE  # [h, w]
    measured = float(where.float().mean())
    if not measured:
        return TurnDrift(number, instruction=instruction)
    mask = None if where.all() else where
    colours = colour_drift(image, anchor, mask)
    alignment = align(grey(image), grey(anchor), mask)
    known = alignment.known
    return TurnDrift(
        number,
        likeness=likeness(image, anchor, alignment, mask),
        colour=colours.delta_e,
        cast=math.hypot(colours.dl, colours.da, colours.db),
        right=alignment.dx * geometry.input_width / geometry.content_width if known else None,
        down=alignment.dy * geometry.input_height / geometry.content_height if known else None,
        scale=alignment.scale if known else None,
        sharpness=relative_sharpness(image, anchor, mask),
        measured=measured,
        instruction=instruction,
    )


def _subject(subject: Tensor | None, memory: AnchorMemory) -> Tensor:
    """Return the pixels [H, W] to compare, as bool."""
    height, width = memory.image.shape[1:]
    if subject is None:
        return torch.ones(height, width, dtype=torch.bool)
    if subject.shape != (height, width):
        raise AnchorEditError(
            f"the mask must be {width}x{height} as the image, got {subject.shape[1]}x{subject.shape[0]}",
            "Draw the mask at the image's size",
        )
    if not (subject > 0.5).any():
        raise AnchorEditError("the mask is black everywhere", "Paint white what should be measured")
    return subject.cpu() > 0.5


def _content(image: Tensor, geometry: Geometry) -> Tensor:
    """Return an image [C, H, W] as the model works on it, without padding: [C, h, w], 0..1."""
    rows = slice(geometry.content_top, geometry.content_top + geometry.content_height)
    columns = slice(geometry.content_left, geometry.content_left + geometry.content_width)
    return geometry.to_work(image.float().cpu().clamp(0, 1)[None])[0, :, rows, columns]


def _scaled(image: Tensor, size: list[int]) -> Tensor:
    """Resize [C, h, w] with antialiasing."""
    if list(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
