"""The judge of edited images: was the instruction followed, the rest preserved, the identity kept.

Analysis by synthesis. Every fact of a scene is *read* from the image: the scene is drawn with every value that the
fact could have, and the drawing nearest to the image, where the drawings differ, is what the image shows. What
is judged is one edit of the editor's own previous image, so an earlier failure is not counted again: the facts
read from the previous image, not the true ones, are what the edit starts from.

    followed    the facts that the instruction names read as it says, and are nearer to that than half way from before
    untouched   no other fact reads differently; where the edit shows nothing the image is the previous one, with
                little damage on the whole, in no place much, and nothing shifted
    identity    the creature is much nearer to the anchor's than to other creatures in its place

Where an edit shows everywhere (light, tone, style) the image is held against the previous one plus what the edit
changes in the drawing. An image is a success if all three hold.

Shapes: N images [N, 3, H, W] in 0..1; V drawings of one scene; F facts; D traits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .instructions import Edit
from .render import LAYERS, render
from .scene import COLUMN, CORNERS, FACTS, LOOK, SUBJECT_TRAITS, TRAIT, Scenes

_ON_TOP = (*CORNERS, "sign", *LOOK)  # drawn after the subject
_BELOW = 2  # layers that these facts leave as they are
_TOGETHER = 12  # drawings


@dataclass(frozen=True)
class Thresholds:
    """All limits of the judge, the same for every editor. Differences are mean absolute ones of colours in 0..1."""

    shows: float = 0.04  # a pixel shows a fact if two drawings differ there by this much
    half_way: float = 0.5  # of the way from the old drawing to the wanted one
    clearly: float = 0.85  # a fact reads as another value if that is nearer by this factor
    margin: int = 3  # pixels around what an edit shows that may differ as well
    damage: float = 0.04  # where nothing should change, on the whole
    damage_in_block: float = 0.15  # and in the worst block
    block: int = 16  # pixels, the side of a block
    shift: float = 0.5  # pixels
    likeness: float = 0.5  # 1: the anchor's creature, 0: anybody


@dataclass(frozen=True)
class Verdict:
    """On one image of each of N sessions; bool, int64 or float32 [N], `facts` [N, F]."""

    followed: Tensor
    untouched: Tensor
    identity: Tensor
    facts: Tensor  # as read from the image; what to believe before the next edit
    damage: Tensor  # mean absolute difference where nothing should change
    shift: Tensor  # pixels
    likeness: Tensor

    @property
    def success(self) -> Tensor:
        return self.followed & self.untouched & self.identity


class Judge:
    """Judges images one by one."""

    def __init__(self, thresholds: Thresholds = Thresholds()):
        self.limits = thresholds

    def judge(self, images: Tensor, previous: Tensor, believed: Scenes, edits: Sequence[Edit]) -> Verdict:
        """Judge N edits.

        `images`, `previous` [N, 3, H, W]: the new one and the editor's own one before; `believed`: N scenes with the
        facts as read from `previous` (at the first turn the source and its true facts).
        """
        rows = [self._judge(*row) for row in zip(images, previous, _singles(believed), edits, strict=True)]
        return Verdict(*(torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*rows)))

    def read(self, image: Tensor, scene: Scenes, names: Sequence[str]) -> Tensor:
        """Facts [F] of an image [3, H, W]: those of `scene` [1], but `names` as the image shows them."""
        drawings = _alternatives(scene, names, image.shape[-2:])
        facts = scene.facts[0].clone()
        for name, drawn in drawings.items():
            now = int(scene.fact(name)[0])
            shown = ((drawn - drawn[now]).abs().amax(dim=1) > self.limits.shows).any(dim=0)  # [H, W]
            distance = (drawn - image).abs().mean(dim=1)[:, shown].sum(dim=1)  # [V]
            nearest = int(distance.argmin())
            if distance[nearest] < self.limits.clearly * distance[now]:  # never where nothing shows
                facts[COLUMN[name]] = nearest
        return facts

    def _judge(self, image: Tensor, previous: Tensor, before: Scenes, edit: Edit) -> tuple:
        size = image.shape[-2:]
        named = {change.fact: change.new for change in edit.changes}
        wanted = before.with_facts(torch.tensor([edit.apply(before.facts[0].tolist())], device=before.facts.device))
        old, new = render(Scenes(torch.cat([before.facts, wanted.facts]), before.identity.repeat(2, 1)), *size)

        shown = ((new - old).abs().amax(dim=0) > self.limits.shows).float()  # [H, W]
        facts = self.read(image, wanted, list(named))
        as_said = all(int(facts[COLUMN[fact]]) == value for fact, value in named.items())
        followed = as_said and self._is_past_half_way(image, old, new, shown)

        others = [name for name in FACTS if name not in named]
        seen = before.with_facts(facts[None])
        facts = self.read(image, seen, others)
        same = bool((facts == seen.facts[0]).all())
        expected = (previous + new - old).clamp(0, 1)
        everywhere = any(fact in LOOK for fact in named)
        rest = torch.ones_like(shown) if everywhere else 1 - _widened(shown, self.limits.margin)
        damage, in_block, shift = self._compare(image, expected, rest)
        intact = damage <= self.limits.damage and in_block <= self.limits.damage_in_block
        untouched = same and intact and shift <= self.limits.shift
        if edit.kind == "null":
            followed = untouched
        likeness = self._likeness(image, before.with_facts(facts[None]))
        return followed, untouched, likeness >= self.limits.likeness, facts, damage, shift, likeness

    def _is_past_half_way(self, image: Tensor, old: Tensor, new: Tensor, shown: Tensor) -> bool:
        away = ((image - new).abs().mean(dim=0) * shown).sum()
        way = ((old - new).abs().mean(dim=0) * shown).sum()
        return bool(away <= self.limits.half_way * way) or not shown.any()

    def _compare(self, image: Tensor, expected: Tensor, rest: Tensor) -> tuple[float, float, float]:
        """Mean difference, that of the worst block, and shift in pixels, where `rest` [H, W] is 1."""
        difference = (image - expected).abs().mean(dim=0) * rest  # [H, W]
        area = rest.sum().clamp(min=1)
        side = min(self.limits.block, *image.shape[-2:])
        blocks, areas = (F.avg_pool2d(t[None, None], side, side // 2) for t in (difference, rest))
        in_block = (blocks / areas.clamp(min=0.25)).max()  # a block needs a quarter of it to count in full
        return float(difference.sum() / area), float(in_block), _shift(image, expected, rest)

    def _likeness(self, image: Tensor, scene: Scenes) -> float:
        """1 minus the image's distance from the scene, as a share of that from other creatures in its place."""
        strangers = scene.identity.repeat(1 + len(_STRANGERS), 1)
        columns = torch.tensor([TRAIT[name] for name in SUBJECT_TRAITS], device=strangers.device)
        strangers[1:, columns] = _STRANGERS.to(strangers.device)
        drawn = render(Scenes(scene.facts.repeat(len(strangers), 1), strangers), *image.shape[-2:])
        shown = ((drawn[1:] - drawn[:1]).abs().amax(dim=1) > self.limits.shows).float()  # [V, H, W]
        away = (drawn - image).abs().mean(dim=1)  # [1 + V, H, W]
        own, theirs = (away[:1] * shown).sum(dim=(1, 2)), (away[1:] * shown).sum(dim=(1, 2))  # [V]
        return float((1 - own / theirs.clamp(min=1e-6)).mean())


def _alternatives(scene: Scenes, names: Sequence[str], size: Sequence[int]) -> dict[str, Tensor]:
    """Return the scene [1] drawn with every value of each of the facts `names`: [V, 3, H, W] each.

    Several facts are drawn at once; the subject below is drawn once for all facts that lie above it.
    """
    drawn: dict[str, Tensor] = {}
    for on_top in (False, True):
        wanted = [name for name in names if (name in _ON_TOP) == on_top]
        below = render(scene, *size, LAYERS[:_BELOW]) if on_top and wanted else None
        for together in _grouped(wanted):
            several = [_with_every_value(scene, name) for name in together]
            scenes = Scenes(*(torch.cat([getattr(one, part) for one in several]) for part in ("facts", "identity")))
            if below is None:
                image = render(scenes, *size)
            else:
                image = below.expand(len(scenes), -1, -1, -1)
                for layer in LAYERS[_BELOW:]:
                    image = layer(image, scenes)
            drawn.update(zip(together, image.split([len(one) for one in several])))
    return drawn


def _grouped(names: Sequence[str]) -> list[list[str]]:
    """Facts that are drawn together: as many drawings as a processor's cache holds."""
    groups: list[list[str]] = []
    for name in names:
        if not groups or sum(len(FACTS[other]) for other in (*groups[-1], name)) > _TOGETHER:
            groups.append([])
        groups[-1].append(name)
    return groups


def _with_every_value(scene: Scenes, name: str) -> Scenes:
    count = len(FACTS[name])
    facts = scene.facts.repeat(count, 1)
    facts[:, COLUMN[name]] = torch.arange(count, device=facts.device)
    return Scenes(facts, scene.identity.expand(count, -1))


def _singles(scenes: Scenes) -> list[Scenes]:
    return [scenes[number : number + 1] for number in range(len(scenes))]


def _widened(mask: Tensor, margin: int) -> Tensor:
    return F.max_pool2d(mask[None, None], 2 * margin + 1, stride=1, padding=margin)[0, 0]


def _shift(image: Tensor, expected: Tensor, rest: Tensor) -> float:
    """Pixels by which the image is displaced, by least squares on the gradient (Lucas and Kanade, 1981).

    Both are smoothed, so that the estimate holds over a few pixels.
    """
    kernel = torch.tensor([1.0, 6, 15, 20, 15, 6, 1], device=image.device) / 64
    both = torch.stack([image.mean(dim=0), expected.mean(dim=0)])[:, None]  # [2, 1, H, W]
    both = F.pad(both, (3, 3, 3, 3), mode="replicate")
    both = F.conv2d(F.conv2d(both, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    weight = 1 - _widened(1 - rest, 3)  # where the smoothing saw nothing else
    down, across = torch.gradient(both[1])
    gradient = torch.stack([across, down]).flatten(1) * weight.flatten()  # [2, H * W]
    matrix = gradient @ gradient.T + 1e-3 * torch.eye(2, device=image.device)
    return float(torch.linalg.solve(matrix, gradient @ (both[1] - both[0]).flatten()).norm())


# Other creatures to tell the anchor's from, [V, traits of the subject]: the same for everybody.
_STRANGERS = torch.rand(6, len(SUBJECT_TRAITS), generator=torch.Generator().manual_seed(6))
