"""The first checker: did an edited picture follow its instruction, and keep the rest?

Analysis by synthesis: the scene is drawn with every value that the named fact could have, and the edited
picture is compared with all of them where they differ. It *followed* if the right one is nearest, and nearer
than half the way from the picture before. A null edit is followed if the picture is nearer to the scene as it is
than to the scene with any one fact changed. `damage` measures what changed where the right edit changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .instructions import Edit
from .render import render
from .scene import COLUMN, FACTS, Scenes

_DIFFERS = 0.04  # a pixel shows the fact if two drawings differ by this much there
_NULL_DAMAGE = 0.03  # mean absolute difference, in 0..1, that a null edit may make


def followed(pictures: Tensor, before: Scenes, edits: Sequence[Edit]) -> Tensor:
    """Whether each picture [N, 3, H, W] in 0..1 is scene `before` with the edit done: bool [N]."""
    return torch.tensor([_followed(pictures[n], before[n : n + 1], edit) for n, edit in enumerate(edits)])


def damage(pictures: Tensor, before: Scenes, edits: Sequence[Edit]) -> Tensor:
    """Mean absolute difference from the truth, in 0..1, outside what each edit changes: [N]."""
    values = []
    for n, edit in enumerate(edits):
        old, wanted = _drawings(before[n : n + 1], edit, pictures.shape[-2:], [edit.old, edit.new])
        rest = 1 - _shown(old, wanted)
        values.append(((pictures[n] - wanted).abs().mean(dim=0) * rest).sum() / rest.sum().clamp(min=1))
    return torch.stack(values)


def _followed(picture: Tensor, before: Scenes, edit: Edit) -> bool:
    size = picture.shape[-2:]
    if edit.fact is None:
        return _is_unchanged(picture, before)
    drawings = _drawings(before, edit, size, range(len(FACTS[edit.fact])))  # [V, 3, H, W]
    wanted, old = drawings[edit.new], drawings[edit.old]
    shown = _shown(old, wanted)
    area = shown.sum().clamp(min=1)
    distance = ((drawings - picture).abs().mean(dim=1) * shown).sum(dim=(1, 2)) / area  # [V]
    between = ((wanted - old).abs().mean(dim=0) * shown).sum() / area
    return bool(distance.argmin() == edit.new and distance[edit.new] < 0.5 * between)


def _is_unchanged(picture: Tensor, before: Scenes) -> bool:
    same = render(before, *picture.shape[-2:])[0]
    if (picture - same).abs().mean() > _NULL_DAMAGE:
        return False
    others = [
        Edit("other", fact, value, other)
        for fact, values in FACTS.items()
        for value in [int(before.fact(fact)[0])]
        for other in range(len(values))
        if other != value
    ]
    facts = torch.tensor([other.apply(before.facts[0].tolist()) for other in others], device=before.facts.device)
    changed = render(Scenes(facts, before.identity.expand(len(others), -1)), *picture.shape[-2:])  # [K, 3, H, W]
    shown = ((changed - same).abs().amax(dim=1) > _DIFFERS).float()  # [K, H, W]
    to_same = ((picture - same).abs().mean(dim=0) * shown).sum(dim=(1, 2))
    to_changed = ((changed - picture).abs().mean(dim=1) * shown).sum(dim=(1, 2))
    return bool((to_same < to_changed)[shown.sum(dim=(1, 2)) > 0].all())  # what lies hidden cannot be told


def _drawings(before: Scenes, edit: Edit, size: Sequence[int], values: Sequence[int]) -> Tensor:
    """The scene [1] with each of `values` for the fact the edit names: [V, 3, H, W]."""
    facts = before.facts.repeat(len(values), 1)
    if edit.fact is not None:
        facts[:, COLUMN[edit.fact]] = torch.tensor(list(values), device=facts.device)
    return render(Scenes(facts, before.identity.expand(len(values), -1)), *size)


def _shown(old: Tensor, wanted: Tensor) -> Tensor:
    """1 where the edit shows, else 0: [H, W]."""
    return ((wanted - old).abs().amax(dim=0) > _DIFFERS).float()
