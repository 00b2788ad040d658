"""Scenes of the studio: what there is to know about an image before it is drawn.

A scene has *facts*, small whole numbers that instructions name (colour, place, what it wears ...), and an
*identity*, real numbers that no instruction ever names (outline, pattern, second colour, marks). An editor
that keeps the facts but loses the identity has drawn somebody else.

Shapes: N scenes; facts [N, len(FACTS)] int64; identity [N, len(IDENTITY)] float32 in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
OBJECTS = ("none", "star", "heart", "moon", "ball", "box", "flower", "tree")

# Every fact and its possible values, in the order of the columns of `Scenes.facts`.
FACTS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "background": COLOURS,
    "size": ("small", "medium", "big"),
    "place": ("left", "middle", "right"),
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
COLUMN = {name: column for column, name in enumerate(FACTS)}
WORN = ("headwear", "glasses", "bow tie")
LOOK = ("lighting", "tone", "style")  # facts of the whole image
START_TONE, START_STYLE = 0, 0  # a source is a plain image in colour

SUBJECT_TRAITS = (
    *("bulge2", "bulge3", "bulge5", "turn2", "turn3", "turn5", "aspect"),
    *("pattern", "pattern_scale", "pattern_angle", "pattern_phase", "pattern_cover"),
    *("hue2", "saturation2", "value2"),
    *("ear_length", "ear_width", "ear_spread", "eye_spacing", "eye_size"),
    *(f"mark{number}_{what}" for number in range(2) for what in ("angle", "distance", "size", "tone")),
)
IDENTITY = (*SUBJECT_TRAITS, "horizon", "sky", "hill_phase", "hill_height")
TRAIT = {name: column for column, name in enumerate(IDENTITY)}

_WORN_SHARE = 0.35  # of scenes in which a thing is worn, and of corners in which an object stands
_DAY_SHARE = 0.6  # of scenes in daylight


@dataclass(frozen=True)
class Scenes:
    """N scenes. `facts` [N, F] int64, `identity` [N, D] float32 in 0..1."""

    facts: torch.Tensor
    identity: torch.Tensor

    def __len__(self) -> int:
        return len(self.facts)

    def fact(self, name: str) -> torch.Tensor:
        """Column of one fact, [N]."""
        return self.facts[:, COLUMN[name]]

    def trait(self, name: str) -> torch.Tensor:
        """Column of one trait of identity, [N]."""
        return self.identity[:, TRAIT[name]]

    def __getitem__(self, index) -> Scenes:
        return Scenes(self.facts[index], self.identity[index])

    def with_facts(self, facts: torch.Tensor) -> Scenes:
        return Scenes(facts, self.identity)

    def to(self, device) -> Scenes:
        return Scenes(self.facts.to(device), self.identity.to(device))


def sample_scenes(count: int, generator: torch.Generator) -> Scenes:
    """`count` random scenes in colour and plain style. No object stands twice: "the star" is always one thing."""
    facts = torch.stack([torch.randint(len(values), (count,), generator=generator) for values in FACTS.values()], dim=1)
    for name in WORN:
        worn = torch.rand(count, generator=generator) < _WORN_SHARE
        facts[:, COLUMN[name]] = facts[:, COLUMN[name]].clamp(min=1) * worn
    corners = torch.rand(count, len(OBJECTS) - 1, generator=generator).argsort(dim=1)[:, : len(CORNERS)] + 1
    present = torch.rand(count, len(CORNERS), generator=generator) < _WORN_SHARE
    first = COLUMN[CORNERS[0]]
    facts[:, first : first + len(CORNERS)] = corners * present
    facts[:, COLUMN["lighting"]] *= torch.rand(count, generator=generator) > _DAY_SHARE - (1 - _DAY_SHARE) / 2
    facts[:, COLUMN["tone"]], facts[:, COLUMN["style"]] = START_TONE, START_STYLE
    return Scenes(facts, torch.rand(count, len(IDENTITY), generator=generator))
