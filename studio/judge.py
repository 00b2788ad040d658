"""The judge of edited images: instruction followed, rest preserved, identity kept.

Analysis by synthesis. The judge reads every attribute of a scene from the image: it renders the scene with every value
of that attribute and takes the rendering nearest to the image, measured where the renderings differ. It judges a single
edit of the editor's own previous image, so that an earlier failure is not counted again: the edit starts from the
attributes read from the previous image, not from the true ones.

    followed      the attributes that the instruction names have their new values, and the image is more than half way
                  from the old rendering to the new one
    preservation  no other attribute has changed; outside the region of the edit the image equals the previous one,
                  with little damage on average and in every block, and without a shift
    identity      the creature is much nearer to the anchor's than to other creatures with the same attributes

For an edit of the whole image (lighting, tone, style) the image is compared with the previous one plus the difference
between the two renderings. An image is a success if all three hold.

Shapes: N images [N, 3, H, W] in 0..1; V renderings of one scene; A attributes; D traits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .instructions import Edit
from .render import LAYERS, render
from .scene import ATTRIBUTES, COLUMN, CORNERS, GLOBAL_ATTRIBUTES, SUBJECT_TRAITS, TRAIT, Scenes

_ON_TOP = (*CORNERS, "sign", *GLOBAL_ATTRIBUTES)  # painted after the subject
_BELOW = 2  # layers that these attributes do not change
_BATCH = 12  # renderings: as many as a processor's cache holds


@dataclass(frozen=True)
class Thresholds:
    """Hold the limits of the judge, the same for every editor. Differences are mean absolute ones, colours in 0..1."""

    shows: float = 0.04  # a pixel shows an attribute if two renderings differ there by this much
    progress: float = 0.5  # at least, from the old rendering to the new one
    ratio: float = 0.85  # an attribute has another value if the distance to that is smaller by this factor
    margin: int = 3  # pixels around the region of an edit that may differ as well
    damage: float = 0.04  # where nothing should change, on average
    block_damage: float = 0.15  # and in the worst block
    block: int = 16  # pixels, the side of a block
    shift: float = 0.5  # pixels
    likeness: float = 0.5  # 1: the anchor's creature, 0: any other one


@dataclass(frozen=True)
class Verdict:
    """Hold the verdicts on one image of each of N sessions: bool, int64 or float32 [N], `attributes` [N, A]."""

    followed: Tensor
    preservation: Tensor
    identity: Tensor
    attributes: Tensor  # as read from the image; the next edit starts from these
    damage: Tensor  # mean absolute difference where nothing should change
    shift: Tensor  # pixels
    likeness: Tensor

    @property
    def success(self) -> Tensor:
        """Say which images are a success [N]: all three hold."""
        return self.followed & self.preservation & self.identity


class Judge:
    """Judge images one by one."""

    def __init__(self, thresholds: Thresholds = Thresholds()):
        self.limits = thresholds

    def judge(self, images: Tensor, previous: Tensor, judged: Scenes, edits: Sequence[Edit]) -> Verdict:
        """Judge N edits.

        `images`, `previous` [N, 3, H, W]: the editor's new image and the one before; `judged`: N scenes with the
        attributes as read from `previous` (at the first turn the true ones of the source).
        """
        rows = [self._judge(*row) for row in zip(images, previous, _singles(judged), edits, strict=True)]
        return Verdict(*(torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*rows)))

    def read_attributes(self, image: Tensor, scene: Scenes, names: Sequence[str]) -> Tensor:
        """Return the attributes [A] of `scene` [1], with those in `names` as an image [3, H, W] shows them."""
        attributes = scene.attributes[0].clone()
        for name, drawn in _alternatives(scene, names, *image.shape[-2:]).items():
            now = int(scene.attribute(name)[0])
            shown = ((drawn - drawn[now]).abs().amax(dim=1) > self.limits.shows).any(dim=0)  # [H, W]
            distance = (drawn - image).abs().mean(dim=1)[:, shown].sum(dim=1)  # [V]
            nearest = int(distance.argmin())
            if distance[nearest] < self.limits.ratio * distance[now]:  # never where nothing shows
                attributes[COLUMN[name]] = nearest
        return attributes

    def _judge(self, image: Tensor, previous: Tensor, before: Scenes, edit: Edit) -> tuple:
        height, width = image.shape[-2:]
        device = before.attributes.device
        named = {change.attribute: change.new for change in edit.changes}
        target = before.with_attributes(torch.tensor([edit.apply(before.attributes[0].tolist())], device=device))
        both = torch.cat([before.attributes, target.attributes])
        old, new = render(Scenes(both, before.identity.repeat(2, 1)), height, width)

        shown = ((new - old).abs().amax(dim=0) > self.limits.shows).float()  # [H, W]
        attributes = self.read_attributes(image, target, list(named))
        as_instructed = all(int(attributes[COLUMN[name]]) == value for name, value in named.items())
        followed = as_instructed and self._has_progressed(image, old, new, shown)

        others = [name for name in ATTRIBUTES if name not in named]
        seen = before.with_attributes(attributes[None])
        attributes = self.read_attributes(image, seen, others)
        same = bool((attributes == seen.attributes[0]).all())
        expected = (previous + new - old).clamp(0, 1)
        everywhere = any(name in GLOBAL_ATTRIBUTES for name in named)
        rest = torch.ones_like(shown) if everywhere else 1 - _dilated(shown, self.limits.margin)
        damage, block_damage, shift = self._compare(image, expected, rest)
        intact = damage <= self.limits.damage and block_damage <= self.limits.block_damage
        preservation = same and intact and shift <= self.limits.shift
        if edit.kind == "null":
            followed = preservation
        likeness = self._likeness(image, before.with_attributes(attributes[None]))
        return followed, preservation, likeness >= self.limits.likeness, attributes, damage, shift, likeness

    def _has_progressed(self, image: Tensor, old: Tensor, new: Tensor, shown: Tensor) -> bool:
        """Say whether the image is far enough on the way from the old rendering to the new; yes if both look alike."""
        left = ((image - new).abs().mean(dim=0) * shown).sum()
        whole = ((old - new).abs().mean(dim=0) * shown).sum()
        return bool(left <= (1 - self.limits.progress) * whole) or not bool(shown.any())

    def _compare(self, image: Tensor, expected: Tensor, rest: Tensor) -> tuple[float, float, float]:
        """Return the mean difference, that of the worst block, and the shift in pixels, where `rest` [H, W] is 1."""
        difference = (image - expected).abs().mean(dim=0) * rest  # [H, W]
        area = rest.sum().clamp(min=1)
        side = min(self.limits.block, *image.shape[-2:])
        blocks, areas = (F.avg_pool2d(t[None, None], side, side // 2) for t in (difference, rest))
        worst = (blocks / areas.clamp(min=0.25)).max()  # a block counts in full if a quarter of it is compared
        return float(difference.sum() / area), float(worst), _shift(image, expected, rest)

    def _likeness(self, image: Tensor, scene: Scenes) -> float:
        """Return 1 minus the image's distance to the scene relative to that to scenes with other creatures."""
        height, width = image.shape[-2:]
        strangers = scene.identity.repeat(1 + len(_STRANGERS), 1)
        columns = torch.tensor([TRAIT[name] for name in SUBJECT_TRAITS], device=strangers.device)
        strangers[1:, columns] = _STRANGERS.to(strangers.device)
        drawn = render(Scenes(scene.attributes.repeat(len(strangers), 1), strangers), height, width)
        shown = ((drawn[1:] - drawn[:1]).abs().amax(dim=1) > self.limits.shows).float()  # [V, H, W]
        away = (drawn - image).abs().mean(dim=1)  # [1 + V, H, W]
        own, theirs = (away[:1] * shown).sum(dim=(1, 2)), (away[1:] * shown).sum(dim=(1, 2))  # [V]
        return float((1 - own / theirs.clamp(min=1e-6)).mean())


def _alternatives(scene: Scenes, names: Sequence[str], height: int, width: int) -> dict[str, Tensor]:
    """Render the scene [1] with every value of each attribute in `names`: [V, 3, H, W] each.

    Several attributes are rendered in one batch; the subject is rendered once for all attributes painted after it.
    """
    drawn: dict[str, Tensor] = {}
    for on_top in (False, True):
        chosen = [name for name in names if (name in _ON_TOP) == on_top]
        below = render(scene, height, width, LAYERS[:_BELOW]) if on_top and chosen else None
        for group in _groups(chosen):
            several = [_with_every_value(scene, name) for name in group]
            attributes, identity = ([getattr(one, part) for one in several] for part in ("attributes", "identity"))
            scenes = Scenes(torch.cat(attributes), torch.cat(identity))
            if below is None:
                image = render(scenes, height, width)
            else:
                image = below.expand(len(scenes), -1, -1, -1)
                for layer in LAYERS[_BELOW:]:
                    image = layer(image, scenes)
            drawn.update(zip(group, image.split([len(one) for one in several])))
    return drawn


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Group attributes so that the values of a group are at most `_BATCH`."""
    groups: list[list[str]] = []
    for name in names:
        if not groups or sum(len(ATTRIBUTES[other]) for other in (*groups[-1], name)) > _BATCH:
            groups.append([])
        groups[-1].append(name)
    return groups


def _with_every_value(scene: Scenes, name: str) -> Scenes:
    count = len(ATTRIBUTES[name])
    attributes = scene.attributes.repeat(count, 1)
    attributes[:, COLUMN[name]] = torch.arange(count, device=attributes.device)
    return Scenes(attributes, scene.identity.expand(count, -1))


def _singles(scenes: Scenes) -> list[Scenes]:
    return [scenes[number : number + 1] for number in range(len(scenes))]


def _dilated(mask: Tensor, margin: int) -> Tensor:
    return F.max_pool2d(mask[None, None], 2 * margin + 1, stride=1, padding=margin)[0, 0]


def _shift(image: Tensor, expected: Tensor, rest: Tensor) -> float:
    """Estimate by how many pixels the image is displaced, by least squares on the gradient (Lucas and Kanade, 1981).

    Both images are smoothed, so that the estimate holds over a few pixels.
    """
    kernel = torch.tensor([1.0, 6, 15, 20, 15, 6, 1], device=image.device) / 64
    both = torch.stack([image.mean(dim=0), expected.mean(dim=0)])[:, None]  # [2, 1, H, W]
    both = F.pad(both, (3, 3, 3, 3), mode="replicate")
    both = F.conv2d(F.conv2d(both, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    weight = 1 - _dilated(1 - rest, 3)  # where the smoothing kernel lies within `rest`
    down, across = torch.gradient(both[1])
    gradient = torch.stack([across, down]).flatten(1) * weight.flatten()  # [2, H * W]
    matrix = gradient @ gradient.T + 1e-3 * torch.eye(2, device=image.device)
    return float(torch.linalg.solve(matrix, gradient @ (both[1] - both[0]).flatten()).norm())


# The identities of other creatures, to compare the anchor's with, [V, traits of the subject].
_STRANGERS = torch.rand(6, len(SUBJECT_TRAITS), generator=torch.Generator().manual_seed(6))
