"""The first checker: did an edited picture follow its instruction?

Analysis by synthesis: the scene is drawn with every value that the named fact could have, and the edited
picture is compared with all of them where they differ. It followed if the right one is nearest, and nearer
than half the way from the picture before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .instructions import Edit
from .render import render
from .scene import COLUMN, FACTS, Scenes

_NULL_TOLERANCE = 0.03  # mean absolute difference, in 0..1, that a null edit may make
_DIFFERS = 0.04  # a pixel shows the fact if two drawings differ by this much there


def followed(pictures: Tensor, before: Scenes, edits: list[Edit]) -> Tensor:
    """Whether each picture [N, 3, H, W] in 0..1 is scene `before` with the edit done: bool [N]."""
    return torch.tensor(
        [_followed(picture, before[n : n + 1], edit) for n, (picture, edit) in enumerate(zip(pictures, edits))]
    )


def _followed(picture: Tensor, before: Scenes, edit: Edit) -> bool:
    height, width = picture.shape[-2:]
    if edit.fact is None:
        return (picture - render(before, height, width)[0]).abs().mean().item() < _NULL_TOLERANCE
    values = len(FACTS[edit.fact])
    facts = before.facts.repeat(values, 1)
    facts[:, COLUMN[edit.fact]] = torch.arange(values, device=facts.device)
    drawings = render(Scenes(facts, before.identity.expand(values, -1)), height, width)  # [V, 3, H, W]
    wanted, old = drawings[edit.new], drawings[edit.old]
    shown = ((wanted - old).abs().amax(dim=0) > _DIFFERS).float()  # [H, W]
    area = shown.sum().clamp(min=1)
    distance = ((drawings - picture).abs().mean(dim=1) * shown).sum(dim=(1, 2)) / area  # [V]
    between = ((wanted - old).abs().mean(dim=0) * shown).sum() / area
    return bool(distance.argmin() == edit.new and distance[edit.new] < 0.5 * between)
