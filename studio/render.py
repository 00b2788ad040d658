"""The renderer of scenes: anti-aliased, any size and aspect ratio, a whole batch at once, on any device.

Every shape is a signed distance in pixels, negative inside; its coverage is that distance clamped over one pixel, and
layers are painted from back to front. Lighting, tone and style are applied last, to the whole image.

Shapes: N scenes, image height H and width W; (u, v) are coordinates in units of a shape's radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .scene import ATTRIBUTES, CORNERS, OBJECTS, Scenes

Layer = Callable[[Tensor, Scenes], Tensor]  # (image so far [N, 3, H, W], scenes) -> image

_BODY_RGB = (
    (0.84, 0.17, 0.18),
    (0.95, 0.52, 0.12),
    (0.96, 0.83, 0.20),
    (0.22, 0.63, 0.28),
    (0.18, 0.40, 0.85),
    (0.52, 0.26, 0.72),
    (0.95, 0.50, 0.70),
    (0.94, 0.94, 0.92),
)
_INK = (0.13, 0.11, 0.16)
_WHITE = (1.0, 1.0, 1.0)
_LIPS = (0.45, 0.06, 0.12)
_OBJECT_RGB = {  # main and second colour
    "star": ((0.98, 0.80, 0.15), (1.00, 0.93, 0.55)),
    "heart": ((0.88, 0.12, 0.28), (1.00, 0.55, 0.62)),
    "moon": ((0.93, 0.92, 0.72), (1.00, 1.00, 0.92)),
    "ball": ((0.15, 0.45, 0.90), (0.97, 0.97, 0.97)),
    "box": ((0.60, 0.38, 0.20), (0.95, 0.25, 0.35)),
    "flower": ((0.93, 0.38, 0.75), (0.99, 0.85, 0.20)),
    "tree": ((0.13, 0.50, 0.22), (0.45, 0.28, 0.14)),
}
_RADIUS = (0.175, 0.22, 0.27)  # of the subject, by size, in short sides of the image
_POSITION = (0.3, 0.5, 0.7)  # of the subject's centre, in widths
_HEIGHT = 0.62  # of the subject's centre below the upper edge
_CORNER_SIDE = 0.235  # of the square in which a corner object is drawn, in short sides
_SIGN = (0.5, 0.105, 0.16, 0.085)  # centre x and y, half width and half height: x in widths, the rest in short sides
_BOUNDS_U, _BOUNDS_V = (-1.6, 1.6), (-1.85, 1.45)  # of the creature and its shadow, in radii
# Bounds of its parts for any identity: (low u, high u), (low v, high v)
_EARS, _MARKS, _FACE = ((-1.6, 1.6), (-1.7, 0.1)), ((-1.0, 1.0), (-1.0, 1.0)), ((-0.95, 0.95), (-0.75, 1.0))
_HAT, _CROWN = ((-0.65, 0.65), (-1.6, -0.75)), ((-0.5, 0.5), (-1.4, -0.7))
_GLASSES, _BOW_TIE = ((-0.85, 0.85), (-0.5, 0.0)), ((-0.5, 0.5), (0.6, 1.2))
_MARGIN = 12  # pixels around the bounds, for the outline, which is wide at the tips of narrow ears
_LIGHT_RGB = ((1.0, 1.0, 1.0), (1.03, 0.80, 0.62), (0.40, 0.48, 0.78))  # day, sunset, night
_PASTEL_WHITE = 0.5  # share of white in pastel
_PIXELS = 32  # of pixel art on the short side
_LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601


def render(scenes: Scenes, height: int, width: int, layers: Sequence[Layer] | None = None) -> Tensor:
    """Render images [N, 3, H, W] float32 in 0..1 on the scenes' device; `layers` may be those of `compiled_layers`."""
    image = torch.ones(len(scenes), 3, height, width, device=scenes.identity.device)
    for layer in layers or LAYERS:
        image = layer(image, scenes)
    return image


def compiled_layers() -> tuple[Layer, ...]:
    """Return the layers as fused loops, several times faster; each size and number of scenes is compiled again.

    Each layer is compiled by itself: compiled together they become one slow loop.
    """
    return tuple(torch.compile(layer, dynamic=False) for layer in LAYERS)


def background_rgb(index: Tensor) -> Tensor:
    """Return background colours [N, 3], paler than the subject's of the same name, so that both stay visible."""
    return 0.58 * _palette(index) + 0.36 * torch.tensor((1.0, 1.0, 1.0), device=index.device) - 0.02


def _paint_background(image: Tensor, scenes: Scenes) -> Tensor:
    (height, width), device = image.shape[-2:], image.device
    y = ((torch.arange(height, device=device) + 0.5) / height)[None, :, None]  # [1, H, 1]
    x = ((torch.arange(width, device=device) + 0.5) / width)[None, None, :]  # [1, 1, W]
    rgb = background_rgb(scenes.attribute("background"))[:, :, None, None]
    sky = 1.06 - _column(scenes, "sky") * 0.22 * y.flip(1)
    hill = 0.74 + 0.08 * _column(scenes, "horizon")
    wave = torch.sin(x * 7.0 + _column(scenes, "hill_phase") * 6.28) * (0.012 + 0.03 * _column(scenes, "hill_height"))
    ground = _coverage((hill + wave - y) * height)
    return rgb * (sky * (1 - 0.17 * ground))[:, None]


def _paint_subject(image: Tensor, scenes: Scenes) -> Tensor:
    height, width = image.shape[-2:]
    device = image.device
    short = min(height, width)
    radius = torch.tensor(_RADIUS, device=device)[scenes.attribute("size")][:, None, None] * short  # [N, 1, 1] pixels
    centre_x = torch.tensor(_POSITION, device=device)[scenes.attribute("position")][:, None, None] * width
    u = (torch.arange(width, device=device)[None, None, :] + 0.5 - centre_x) / radius
    v = (torch.arange(height, device=device)[None, :, None] + 0.5 - _HEIGHT * height) / radius
    rows, columns = _span(v, _MARGIN / radius, *_BOUNDS_V), _span(u, _MARGIN / radius, *_BOUNDS_U)
    u, v = torch.broadcast_tensors(u[:, :, columns], v[:, rows])
    image = image.clone()
    image[:, :, rows, columns] = _paint_creature(image[:, :, rows, columns], u, v, radius, scenes)
    return image


def _span(line: Tensor, margin: Tensor | float, low: float, high: float) -> slice:
    """Return the part of a line of coordinates from `low` to `high` with a margin, in any of the scenes.

    While compiling it is the whole line.
    """
    if torch.compiler.is_compiling():
        return slice(None)
    inside = ((line > low - margin) & (line < high + margin)).flatten(1).any(dim=0).nonzero()
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _paint_creature(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes) -> Tensor:
    first = _palette(scenes.attribute("colour"))
    second = _second_rgb(scenes)

    shadow = _coverage(_ellipse(u, v - 1.06, 0.95, 0.16) * radius)
    image = _paint(image, shadow * 0.28, _INK)
    image = _paint_within(_EARS, _paint_ears, image, u, v, radius, scenes)
    body = _outline(u, v, scenes) * radius
    inside = _coverage(body)
    image = _paint(image, _coverage(body - 1.2), _INK)
    shade = (1.02 - 0.16 * (0.5 * u + v)).clamp(0.72, 1.08)  # light from above, a little from the left
    image = _paint(image, inside, first, shade)
    image = _paint(image, inside * _pattern(u, v, scenes, radius), second, shade)
    image = _paint_within(_MARKS, _paint_marks, image, u, v, radius, scenes, inside)
    image = _paint_within(_FACE, _paint_face, image, u, v, radius, scenes)
    for bounds, painter, attribute, value in _WORN:
        worn = _is(scenes, attribute, value)
        if _occurs(worn):
            image = _paint_within(bounds, painter, image, u, v, radius, scenes, worn)
    return image


def _paint_within(
    bounds, painter: Callable[..., Tensor], image: Tensor, u, v, radius, scenes, *masks: Tensor
) -> Tensor:
    """Paint within bounds in u and v, in place unless compiling; `masks` [N, H, W] or [N, 1, 1] are cropped alike."""
    rows = _span(v[:, :, :1], _MARGIN / radius, *bounds[1])
    columns = _span(u[:, :1], _MARGIN / radius, *bounds[0])
    masks = tuple(mask if mask.shape[-1] == 1 else mask[:, rows, columns] for mask in masks)
    part = painter(image[:, :, rows, columns], u[:, rows, columns], v[:, rows, columns], radius, scenes, *masks)
    if torch.compiler.is_compiling():
        return part
    image[:, :, rows, columns] = part
    return image


def _paint_ears(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes) -> Tensor:
    first, second = _palette(scenes.attribute("colour")), _second_rgb(scenes)
    length = 0.30 + 0.5 * _column(scenes, "ear_length")
    ear_width = 0.16 + 0.16 * _column(scenes, "ear_width")
    spread = 0.35 + 0.35 * _column(scenes, "ear_spread")
    for side in (-1, 1):
        # an ear leans outwards in proportion to its spread
        lean = side * spread * 0.7
        a = (u - side * spread) * torch.cos(lean) + (v + 0.80) * torch.sin(lean)
        b = -(u - side * spread) * torch.sin(lean) + (v + 0.80) * torch.cos(lean)
        ear = _ellipse(a, b, ear_width, length) * radius
        image = _paint_outlined(image, ear, first * 0.9)
        image = _paint(image, _coverage(_ellipse(a, b + 0.05, ear_width * 0.5, length * 0.62) * radius), second)
    return image


def _outline(u: Tensor, v: Tensor, scenes: Scenes) -> Tensor:
    """Return the signed distance to the body's outline, in radii: a circle with three harmonics, stretched."""
    aspect = 0.86 + 0.28 * _column(scenes, "aspect")
    x, y = u / aspect, v
    rho = torch.sqrt(x * x + y * y).clamp(min=1e-4)
    cos1, sin1 = x / rho, y / rho
    cos2, sin2 = cos1 * cos1 - sin1 * sin1, 2 * cos1 * sin1
    cos3, sin3 = cos2 * cos1 - sin2 * sin1, sin2 * cos1 + cos2 * sin1
    cos5, sin5 = cos3 * cos2 - sin3 * sin2, sin3 * cos2 + cos3 * sin2
    bulge = torch.zeros_like(rho)
    for order, (cos, sin), most in ((2, (cos2, sin2), 0.12), (3, (cos3, sin3), 0.10), (5, (cos5, sin5), 0.07)):
        phase = _column(scenes, f"phase{order}") * 6.28
        bulge = bulge + most * _column(scenes, f"bulge{order}") * (torch.cos(phase) * cos + torch.sin(phase) * sin)
    return rho - 0.94 - bulge


def _pattern(u: Tensor, v: Tensor, scenes: Scenes, radius: Tensor) -> Tensor:
    """Return the coverage of the second colour on the body: stripes, dots or a belly, by the trait `pattern`."""
    kind = (_column(scenes, "pattern") * 3).floor()
    angle = _column(scenes, "pattern_angle") * math.pi
    frequency = 3.6 + 2.2 * _column(scenes, "pattern_scale")
    phase = _column(scenes, "pattern_phase") * 6.28
    cover = _column(scenes, "pattern_cover")
    a = u * torch.cos(angle) + v * torch.sin(angle)
    b = v * torch.cos(angle) - u * torch.sin(angle)
    stripes = torch.sin(a * frequency + phase) - (0.55 - 0.5 * cover)
    dots = torch.sin(a * frequency + phase) * torch.sin(b * frequency + phase) - (0.42 - 0.25 * cover)
    belly = (0.42 + 0.25 * cover - torch.sqrt(u * u * 1.2 + (v - 0.45) ** 2)) * frequency
    wave = torch.where(kind == 0, stripes, torch.where(kind == 1, dots, belly))
    return _coverage(-wave / frequency * radius)


def _paint_marks(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes, inside: Tensor) -> Tensor:
    for number in range(2):
        angle = _column(scenes, f"mark{number}_angle") * 6.28
        distance = 0.5 + 0.25 * _column(scenes, f"mark{number}_distance")
        size = 0.12 + 0.07 * _column(scenes, f"mark{number}_size")
        tone = torch.where(scenes.trait(f"mark{number}_tone") < 0.5, 0.16, 0.97)[:, None].expand(-1, 3)
        mark = _ellipse(u - distance * torch.cos(angle), v - distance * torch.sin(angle), size, size)
        image = _paint(image, inside * _coverage(mark * radius), tone)
    return image


def _paint_face(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes) -> Tensor:
    spacing = 0.28 + 0.12 * _column(scenes, "eye_spacing")
    size = 0.18 + 0.06 * _column(scenes, "eye_size")
    bare = 1 - _is(scenes, "glasses", 1)  # dark glasses hide the eyes, whatever their size
    # a single eye is large and in the middle, three are small and side by side
    for count, scale, sides in ((0, 1.35, (0,)), (1, 1.0, (-1, 1)), (2, 0.8, (-1.3, 0, 1.3))):
        there = _is(scenes, "eyes", count) * bare
        for side in sides if _occurs(there) else ():
            eye = _ellipse(u - side * spacing, v + 0.24, size * scale, size * scale * 1.1) * radius
            pupil = _ellipse(u - side * spacing * 0.96, v + 0.22, size * scale * 0.5, size * scale * 0.6) * radius
            image = _paint_outlined(image, eye, _WHITE, line=0.8, where=there)
            image = _paint(image, _coverage(pupil) * there, _INK)
    thick = 0.085
    calm = torch.maximum(u.abs() - 0.26, (v - 0.38).abs() - thick)  # a straight line
    happy = torch.maximum(_ellipse(u, v - 0.22, 0.44, 0.42), 0.22 - v)  # the lower half of a disc
    sad = torch.maximum(_ellipse(u, v - 0.62, 0.36, 0.36).abs() - thick, v - 0.54)  # the upper half of a ring
    surprised = _ellipse(u, v - 0.42, 0.19, 0.25)  # an open round mouth
    for value, (mouth, rgb) in enumerate(((calm, _INK), (happy, _LIPS), (sad, _INK), (surprised, _LIPS))):
        there = _is(scenes, "expression", value)
        if _occurs(there):
            image = _paint(image, _coverage(mouth * radius) * there, rgb)
    return image


def _paint_hat(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes, worn: Tensor) -> Tensor:
    brim, top = _box(u, v + 0.86, 0.62, 0.08), _box(u, v + 1.22, 0.38, 0.34)
    image = _paint_outlined(image, torch.minimum(brim, top) * radius, (0.22, 0.20, 0.27), where=worn)
    return _paint(image, _coverage(_box(u, v + 0.99, 0.38, 0.07) * radius) * worn, (0.85, 0.15, 0.2))  # red band


def _paint_crown(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes, worn: Tensor) -> Tensor:
    teeth = 0.24 * ((u * 1.75 + 0.5).remainder(1.0) - 0.5).abs() * 2
    crown = torch.maximum(u.abs() - 0.48, torch.maximum(v + 0.72, -(v + 1.32) + 0.24 - teeth))
    image = _paint_outlined(image, crown * radius, (0.98, 0.78, 0.12), where=worn)
    return _paint(image, _coverage(_ellipse(u, v + 0.87, 0.08, 0.08) * radius) * worn, (0.85, 0.1, 0.25))  # red stone


def _paint_glasses(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes, worn: Tensor) -> Tensor:
    """Paint one dark visor over any number of eyes."""
    visor = torch.maximum(_box(u, v + 0.24, 0.80, 0.21), (u.abs() + (v + 0.24).abs() * 0.7) - 0.84)
    shine = torch.maximum((u - 0.3 + (v + 0.24) * 0.8).abs() - 0.10, (v + 0.24).abs() - 0.14)
    image = _paint(image, _coverage(visor * radius) * worn, (0.08, 0.08, 0.12))
    return _paint(image, _coverage(shine * radius) * worn, (0.55, 0.62, 0.78))


def _paint_bow_tie(image: Tensor, u: Tensor, v: Tensor, radius: Tensor, scenes: Scenes, worn: Tensor) -> Tensor:
    y = v - 0.88
    wings = torch.maximum(u.abs() - 0.46, y.abs() - 0.06 - 0.40 * u.abs())
    image = _paint_outlined(image, wings * radius, (0.05, 0.62, 0.62), where=worn)
    return _paint(image, _coverage(_ellipse(u, y, 0.12, 0.13) * radius) * worn, (0.02, 0.36, 0.38))


def _paint_corners(image: Tensor, scenes: Scenes) -> Tensor:
    image = image.clone()
    for corner in CORNERS:
        _paint_corner(image, scenes, corner)
    return image


def _paint_corner(image: Tensor, scenes: Scenes, corner: str) -> None:
    height, width = image.shape[-2:]
    side = max(4, round(_CORNER_SIDE * min(height, width)))
    vertical, horizontal = corner.split()
    top = 0 if vertical == "top" else height - side
    left = 0 if horizontal == "left" else width - side
    tile = image[:, :, top : top + side, left : left + side]
    line = (torch.arange(side, device=image.device) + 0.5) / side * 2.3 - 1.15
    u, v = torch.meshgrid(line, line, indexing="xy")
    u, v = u[None], v[None]
    unit = side / 2.3  # pixels in one radius of the object
    for value in range(1, len(OBJECTS)):
        there = _is(scenes, corner, value)
        if not _occurs(there):
            continue
        main, second = _OBJECT_RGB[OBJECTS[value]]
        shape, detail = _object_shape(OBJECTS[value], u, v)
        tile = _paint_outlined(tile, shape * unit, main, where=there)
        tile = _paint(tile, _coverage(torch.maximum(shape, detail) * unit) * there, second)
    image[:, :, top : top + side, left : left + side] = tile


def _object_shape(name: str, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signed distances to an object and to the part in its second colour."""
    rho, angle = torch.sqrt(u * u + v * v).clamp(min=1e-4), torch.atan2(u, -v)
    if name == "star":
        spike = torch.arccos(torch.cos(5 * angle).clamp(-1, 1)) / math.pi
        return (rho - (0.95 - 0.52 * spike)) * 0.7, rho - 0.3
    if name == "heart":
        lobes = torch.minimum(_ellipse(u - 0.38, v + 0.25, 0.46, 0.46), _ellipse(u + 0.38, v + 0.25, 0.46, 0.46))
        tip = torch.maximum((u.abs() + (v - 0.02) - 0.78) * 0.7, -v - 0.12)
        return torch.minimum(lobes, tip), _ellipse(u + 0.38, v + 0.36, 0.16, 0.13)
    if name == "moon":
        return torch.maximum(rho - 0.85, 0.72 - torch.sqrt((u - 0.45) ** 2 + (v + 0.15) ** 2)), rho - 0.0
    if name == "ball":
        return rho - 0.8, (u * 0.8 + v * 0.6).abs() - 0.2
    if name == "box":
        return _box(u, v, 0.72, 0.72), torch.minimum(u.abs() - 0.15, v.abs() - 0.15)
    if name == "flower":
        return (rho - (0.66 + 0.24 * torch.cos(6 * angle))) * 0.6, rho - 0.3
    crown = torch.maximum((u.abs() * 1.7 - v - 0.9) * 0.5, v - 0.45)  # tree
    return torch.minimum(crown, _box(u, v - 0.68, 0.14, 0.26)), 0.46 - v


def _paint_sign(image: Tensor, scenes: Scenes) -> Tensor:
    """Paint a wooden board that hangs from the upper edge, with its text."""
    height, width = image.shape[-2:]
    short = min(height, width)
    x, y, _, half_height = _SIGN
    unit = half_height * short  # pixels in half the board's height
    u = (torch.arange(width, device=image.device)[None, None, :] + 0.5 - x * width) / unit
    v = (torch.arange(height, device=image.device)[None, :, None] + 0.5 - y * short) / unit
    rows, columns = _span(v, 2 / unit, -1.5, 1.0), _span(u, 2 / unit, -2.0, 2.0)
    u, v = torch.broadcast_tensors(u[:, :, columns], v[:, rows])
    image = image.clone()
    image[:, :, rows, columns] = _paint_board(image[:, :, rows, columns], u, v, unit, scenes)
    return image


def _paint_board(image: Tensor, u: Tensor, v: Tensor, unit: float, scenes: Scenes) -> Tensor:
    _, _, half_width, half_height = _SIGN
    board = _box(u, v, half_width / half_height, 1.0)
    ropes = torch.maximum((u.abs() - 1.3).abs() - 0.05, v + 1.0)
    image = _paint(image, _coverage(ropes * unit).expand(len(scenes), -1, -1), _INK)
    image = _paint_outlined(image, (board * unit).expand(len(scenes), -1, -1), (0.93, 0.82, 0.62))
    for value in range(1, len(ATTRIBUTES["sign"])):
        there = _is(scenes, "sign", value)
        if _occurs(there):
            written = _writing(ATTRIBUTES["sign"][value], u, v) * unit
            rgb = (0.80, 0.10, 0.22) if ATTRIBUTES["sign"][value] == "heart" else _INK
            image = _paint(image, _coverage(written) * there, rgb)
    return image


def _writing(text: str, u: Tensor, v: Tensor) -> Tensor:
    """Return the signed distance to a heart, or to letters made of strokes, each two units high."""
    if text == "heart":
        return _object_shape("heart", u / 0.72, v / 0.72)[0] * 0.72
    centres = [(index - (len(text) - 1) / 2) * 1.45 for index in range(len(text))]
    return torch.stack([_letter(letter, u - centre, v) for letter, centre in zip(text, centres)]).amin(dim=0)


def _letter(letter: str, u: Tensor, v: Tensor) -> Tensor:
    if letter == "O":
        return (torch.sqrt((u / 0.80) ** 2 + v**2 + 1e-9) - 0.52).abs() * 0.9 - 0.16
    strokes = {
        "H": ((-0.4, -0.6, -0.4, 0.6), (0.4, -0.6, 0.4, 0.6), (-0.4, 0.0, 0.4, 0.0)),
        "I": ((0.0, -0.6, 0.0, 0.6),),
        "K": ((-0.36, -0.6, -0.36, 0.6), (-0.3, 0.05, 0.42, -0.6), (-0.3, 0.0, 0.42, 0.6)),
        "N": ((-0.4, -0.6, -0.4, 0.6), (0.4, -0.6, 0.4, 0.6), (-0.4, -0.6, 0.4, 0.6)),
    }[letter]
    return torch.stack([_segment(u, v, *stroke) for stroke in strokes]).amin(dim=0) - 0.16


def _segment(u: Tensor, v: Tensor, u0: float, v0: float, u1: float, v1: float) -> Tensor:
    """Return the distance to the segment from (u0, v0) to (u1, v1)."""
    du, dv = u1 - u0, v1 - v0
    along = (((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv)).clamp(0, 1)
    return torch.sqrt((u - u0 - along * du) ** 2 + (v - v0 - along * dv) ** 2 + 1e-9)


def _apply_global_attributes(image: Tensor, scenes: Scenes) -> Tensor:
    """Apply the lighting, then the tone, then the style to the whole image."""
    image = image.clamp(0, 1)
    height, width = image.shape[-2:]
    lighting = scenes.attribute("lighting")
    light = torch.tensor(_LIGHT_RGB, device=image.device)[lighting][:, :, None, None]  # [N, 3, 1, 1]
    low = ((torch.arange(height, device=image.device) + 0.5) / height)[None, None, :, None]  # 1 at the ground
    fall = torch.where(lighting[:, None, None, None] == 0, 1.0, 0.90 + 0.2 * low)
    image = (image * light * fall).clamp(0, 1)
    grey = (image * torch.tensor(_LUMINANCE, device=image.device)[:, None, None]).sum(dim=1, keepdim=True)
    image = torch.where(_is(scenes, "tone", 1)[:, None] > 0, grey, image)
    image = image + _PASTEL_WHITE * _is(scenes, "style", 1)[:, None] * (1 - image)
    pixelled = _is(scenes, "style", 2)[:, None]
    if not _occurs(pixelled):
        return image
    block = max(1, round(min(height, width) / _PIXELS))
    squares = F.avg_pool2d(image, block, ceil_mode=True, count_include_pad=False)
    squares = squares.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, :height, :width]
    return torch.where(pixelled > 0, squares, image)


def _ellipse(u: Tensor, v: Tensor, a, b) -> Tensor:
    """Return the distance to an ellipse with half axes (a, b): exact for a circle, good near the edge otherwise."""
    smaller = min(a, b) if isinstance(a, float) and isinstance(b, float) else torch.minimum(*_tensors(a, b))
    return (torch.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-9) - 1) * smaller


def _tensors(a, b) -> tuple[Tensor, Tensor]:
    reference = a if isinstance(a, Tensor) else b
    return torch.as_tensor(a, device=reference.device), torch.as_tensor(b, device=reference.device)


def _box(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(u.abs() - a, v.abs() - b)


def _coverage(distance: Tensor) -> Tensor:
    """Return 1 inside, 0 outside, linear over the pixel at the edge; the distance is in pixels."""
    return (0.5 - distance).clamp(0, 1)


def _paint(image: Tensor, coverage: Tensor, rgb, shade: Tensor | float = 1.0) -> Tensor:
    """Blend `rgb` ([N, 3] or a triple), times `shade`, over `image` [N, 3, H, W] by `coverage` [N, H, W]."""
    rgb = torch.as_tensor(rgb, device=image.device, dtype=image.dtype)
    rgb = rgb.reshape(-1, 3, 1, 1) * (shade[:, None] if isinstance(shade, Tensor) else shade)
    return torch.lerp(image, rgb, coverage[:, None])


def _paint_outlined(image: Tensor, distance: Tensor, rgb, line: float = 1.2, where: Tensor | float = 1.0) -> Tensor:
    image = _paint(image, _coverage(distance - line) * where, _INK)
    return _paint(image, _coverage(distance) * where, rgb)


def _is(scenes: Scenes, attribute: str, value: int) -> Tensor:
    """Return 1 for the scenes in which the attribute has this value, else 0: [N, 1, 1]."""
    return (scenes.attribute(attribute) == value)[:, None, None].float()


def _occurs(there: Tensor) -> bool:
    """Say whether a part has to be painted in any scene; always while compiling, where values are unknown."""
    return torch.compiler.is_compiling() or bool(there.any())


def _column(scenes: Scenes, trait: str) -> Tensor:
    return scenes.trait(trait)[:, None, None]


def _palette(index: Tensor) -> Tensor:
    return torch.tensor(_BODY_RGB, device=index.device)[index]


def _second_rgb(scenes: Scenes) -> Tensor:
    """Return the second colour [N, 3], a trait of identity, from hue, saturation and value."""
    hue = scenes.trait("hue2")[:, None] * 6 + torch.tensor((0.0, 4.0, 2.0), device=scenes.identity.device)
    pure = ((hue.remainder(6) - 3).abs() - 1).clamp(0, 1)
    saturation = 0.35 + 0.55 * scenes.trait("saturation2")[:, None]
    value = 0.35 + 0.6 * scenes.trait("value2")[:, None]
    return value * (1 - saturation * (1 - pure))


_WORN = (  # bounds, painter, and the attribute and value of each accessory
    (_HAT, _paint_hat, "headwear", 1),
    (_CROWN, _paint_crown, "headwear", 2),
    (_GLASSES, _paint_glasses, "glasses", 1),
    (_BOW_TIE, _paint_bow_tie, "bow tie", 1),
)
LAYERS: tuple[Layer, ...] = (_paint_background, _paint_subject, _paint_corners, _paint_sign, _apply_global_attributes)
