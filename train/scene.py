"""Scenes of the studio: what there is to know about a picture before it is drawn.

A scene has *facts*, small whole numbers that instructions name (colour, place, what it wears ...), and an
*identity*, real numbers that no instruction ever names (outline, pattern, second colour, marks). An editor
that keeps the facts but loses the identity has drawn somebody else.

Shapes: N scenes; facts [N, len(FACTS)] int64; identity [N, len(IDENTITY)] float32 in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium", "big")
PLACES = ("left", "middle", "right")
EXPRESSIONS = ("calm", "happy", "sad", "surprised")
HEADWEAR = ("none", "hat", "crown")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
OBJECTS = ("none", "star", "heart", "moon", "ball", "box", "flower", "tree")

# Every fact and its possible values, in the order of the columns of `Scenes.facts`.
FACTS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "background": COLOURS,
    "size": SIZES,
    "place": PLACES,
    "expression": EXPRESSIONS,
    "headwear": HEADWEAR,
    "glasses": ("none", "glasses"),
    "bow tie": ("none", "bow tie"),
    **dict.fromkeys(CORNERS, OBJECTS),
}
COLUMN = {name: column for column, name in enumerate(FACTS)}
WORN = ("headwear", "glasses", "bow tie")

IDENTITY = (
    *("bulge2", "bulge3", "bulge5", "turn2", "turn3", "turn5", "aspect"),
    *("pattern", "pattern_scale", "pattern_angle", "pattern_phase", "pattern_cover"),
    *("hue2", "saturation2", "value2"),
    *("ear_length", "ear_width", "ear_spread", "eye_spacing", "eye_size"),
    *(f"mark{number}_{what}" for number in range(3) for what in ("angle", "distance", "size", "tone")),
    *("horizon", "sky", "hill_phase", "hill_height"),
)
TRAIT = {name: column for column, name in enumerate(IDENTITY)}


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
    """`count` random scenes. No object stands in two corners, so that "the star" is always one thing."""
    facts = torch.stack([torch.randint(len(values), (count,), generator=generator) for values in FACTS.values()], dim=1)
    for name in WORN:  # something is worn about every third time
        worn = torch.rand(count, generator=generator) < 0.35
        facts[:, COLUMN[name]] = facts[:, COLUMN[name]].clamp(min=1) * worn
    corners = torch.rand(count, len(OBJECTS) - 1, generator=generator).argsort(dim=1)[:, : len(CORNERS)] + 1
    present = torch.rand(count, len(CORNERS), generator=generator) < 0.35
    first = COLUMN[CORNERS[0]]
    facts[:, first : first + len(CORNERS)] = corners * present
    return Scenes(facts, torch.rand(count, len(IDENTITY), generator=generator))
