"""Scenes of the studio: everything that determines an image.

A scene has *attributes*, small integers that instructions name (colour, position, what the creature wears ...), and
an *identity*, real numbers that no instruction ever names (outline, pattern, second colour, marks). An editor that
keeps the attributes but loses the identity shows another creature.

Shapes: N scenes; attributes [N, len(ATTRIBUTES)] int64; identity [N, len(IDENTITY)] float32 in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
OBJECTS = ("none", "star", "heart", "moon", "ball", "box", "flower", "tree")

# The values of every attribute, in the order of the columns of `Scenes.attributes`.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "background": COLOURS,
    "size": ("small", "medium", "big"),
    "position": ("left", "middle", "right"),
    "expression": ("calm", "happy", "sad", "surprised"),
    "eyes": ("one", "two", "three"),
    "headwear": ("none", "hat", "crown"),
    "glasses": ("none", "glasses"),
    "bow tie": ("none", "bow tie"),
    **dict.fromkeys(CORNERS, OBJECTS),
    "sign": ("blank", "HI", "OK", "NO", "heart"),
    "lighting": ("day", "sunset", "night"),
    "tone": ("colour", "black and white"),
    "style": ("plain", "pastel", "pixel art"),
}
COLUMN = {name: column for column, name in enumerate(ATTRIBUTES)}
WORN = ("headwear", "glasses", "bow tie")
GLOBAL_ATTRIBUTES = ("lighting", "tone", "style")  # of the whole image
START_TONE, START_STYLE = 0, 0  # every source is in colour and in plain style

SUBJECT_TRAITS = (
    *("bulge2", "bulge3", "bulge5", "phase2", "phase3", "phase5", "aspect"),
    *("pattern", "pattern_scale", "pattern_angle", "pattern_phase", "pattern_cover"),
    *("hue2", "saturation2", "value2"),
    *("ear_length", "ear_width", "ear_spread", "eye_spacing", "eye_size"),
    *(f"mark{number}_{what}" for number in range(2) for what in ("angle", "distance", "size", "tone")),
)
IDENTITY = (*SUBJECT_TRAITS, "horizon", "sky", "hill_phase", "hill_height")
TRAIT = {name: column for column, name in enumerate(IDENTITY)}

_PRESENT_SHARE = 0.35  # of scenes in which an accessory is worn, and of corners with an object
_DAY_SHARE = 0.6  # of scenes in daylight


@dataclass(frozen=True)
class Scenes:
    """Hold N scenes: `attributes` [N, A] int64, `identity` [N, D] float32 in 0..1."""

    attributes: torch.Tensor
    identity: torch.Tensor

    def __len__(self) -> int:
        return len(self.attributes)

    def attribute(self, name: str) -> torch.Tensor:
        """Return one attribute of all scenes, [N]."""
        return self.attributes[:, COLUMN[name]]

    def trait(self, name: str) -> torch.Tensor:
        """Return one trait of the identity of all scenes, [N]."""
        return self.identity[:, TRAIT[name]]

    def __getitem__(self, index) -> Scenes:
        return Scenes(self.attributes[index], self.identity[index])

    def with_attributes(self, attributes: torch.Tensor) -> Scenes:
        return Scenes(attributes, self.identity)

    def to(self, device) -> Scenes:
        return Scenes(self.attributes.to(device), self.identity.to(device))


def sample_scenes(count: int, generator: torch.Generator) -> Scenes:
    """Sample `count` scenes in colour and plain style.

    No object occurs twice in a scene, so that "the star" is unambiguous.
    """
    columns = [torch.randint(len(values), (count,), generator=generator) for values in ATTRIBUTES.values()]
    attributes = torch.stack(columns, dim=1)
    for name in WORN:
        worn = torch.rand(count, generator=generator) < _PRESENT_SHARE
        attributes[:, COLUMN[name]] = attributes[:, COLUMN[name]].clamp(min=1) * worn
    corners = torch.rand(count, len(OBJECTS) - 1, generator=generator).argsort(dim=1)[:, : len(CORNERS)] + 1
    present = torch.rand(count, len(CORNERS), generator=generator) < _PRESENT_SHARE
    first = COLUMN[CORNERS[0]]
    attributes[:, first : first + len(CORNERS)] = corners * present
    attributes[:, COLUMN["lighting"]] *= torch.rand(count, generator=generator) > _DAY_SHARE - (1 - _DAY_SHARE) / 2
    attributes[:, COLUMN["tone"]], attributes[:, COLUMN["style"]] = START_TONE, START_STYLE
    return Scenes(attributes, torch.rand(count, len(IDENTITY), generator=generator))
