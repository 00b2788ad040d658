"""What training data is made of: edit sessions, the parts of a source, and what is wrong with some of them.

A *source* is a list of *parts*: the tar files of a folder (`shards.shard_parts`), or stretches of the studio's
seeded sequence (`studio_source.studio_parts`). A part is what one process reads and what one file of the cache
holds. A session that cannot be used never stops training: it is left out, counted by its reason and named.

Shapes: T edits; H, W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from anchoredit_model.geometry import buckets, fit_into, nearest_bucket

# Why a session is left out, and what to do about it.
REMEDIES = {
    "damaged archive": "copy or write the shard again",
    "empty shard": "leave it out",
    "missing instructions": "add <key>.json",
    "unreadable instructions": 'write {"instructions": [{"en": "..."}, ...]}, one entry per edited image',
    "wrong instruction count": "give as many instructions as edited images",
    "no common language": "give all instructions of a session in one language at least",
    "missing image": "number the images 0 (the source), 1, 2, ... without a gap",
    "duplicate image": "keep one file per number",
    "no edited image": "add <key>.1.jpg, ... or leave the session out",
    "unreadable image": "save it as JPEG again",
    "mixed sizes": "give all images of a session one size",
    "broken chain": "number a session's turns 1, 2, ..., each starting from the image that the turn before made",
    "duplicate key": "give every session a key of its own",
    "unreadable table": "give the columns session, turn, source, target and instruction in every row",
    "a star": "give this stage chains; the first stage learns from stars as well",
    "outside the folder": "keep images in the folder named for them and give paths relative to it",
}


class BadSession(Exception):
    """A session that cannot be used: `reason` is a key of REMEDIES, `detail` says what is there."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one session ("" for a whole file) of one shard, folder or table."""

    place: str
    key: str
    reason: str
    detail: str

    def __str__(self) -> str:
        place = f"{self.place} {self.key}" if self.key else self.place
        return f"{place}: {self.reason} ({self.detail}): {REMEDIES[self.reason]}"


@dataclass
class Problems:
    """Collects what was left out."""

    found: list[Problem] = field(default_factory=list)

    def add(self, place: str, key: str, reason: str, detail: str) -> None:
        self.found.append(Problem(place, key, reason, " ".join(detail.split())))

    def summary(self) -> list[str]:
        """One line per reason: how many, and the first of them."""
        first = {problem.reason: problem for problem in reversed(self.found)}
        counts = Counter(problem.reason for problem in self.found)
        return [f"{count} x {reason}, first: {first[reason]}" for reason, count in counts.most_common()]


@dataclass(frozen=True)
class EditSession:
    """`images` uint8 [T + 1, 3, H, W], the source first; `instructions` T texts by language ("en", "zh", ...).

    In a `star` every edit starts from the source, otherwise from the image before. Sessions of the studio leave it
    to its settings.
    """

    key: str
    images: Tensor
    instructions: tuple[Mapping[str, str], ...]
    star: bool = False

    @property
    def turns(self) -> int:
        return len(self.instructions)


class Part(Protocol):
    """A stretch of a source. `fingerprint` changes whenever its sessions do; `name` is for people."""

    name: str
    fingerprint: str

    def sessions(self, problems: Problems) -> Iterator[EditSession]:
        """Return the usable sessions, always in the same order; the others go into `problems`."""


@dataclass(frozen=True)
class WorkSizes:
    """The image sizes that are trained at, described as in `geometry.buckets`; the tiny model has just one."""

    area: int = 1024
    area_step: int = 64
    area_ratio: float = 4.0

    def fit(self, session: EditSession) -> EditSession:
        """Return the session at the nearest of these sizes, padded as an editing session would be."""
        height, width = session.images.shape[-2:]
        size = nearest_bucket(height, width, buckets(self.area, self.area_step, self.area_ratio))
        if size == (height, width):
            return session
        canvas = fit_into(height, width, *size).to_work(session.images.float() / 255)
        return replace(session, images=to_bytes(canvas))


def languages_of(instructions: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the languages that all instructions of a session are given in, in alphabetical order."""
    return tuple(sorted(set.intersection(*(set(texts) for texts in instructions)))) if instructions else ()


def check_instructions(instructions: object, edits: int) -> tuple[dict[str, str], ...]:
    """`instructions` as read from JSON, if they are T texts by language. Raises BadSession."""
    readable = isinstance(instructions, list) and all(
        isinstance(texts, dict) and texts and all(isinstance(text, str) for text in texts.values())
        for texts in instructions
    )
    if not readable:
        raise BadSession("unreadable instructions", "not a list of texts by language")
    if len(instructions) != edits:
        raise BadSession("wrong instruction count", f"{len(instructions)} for {edits} edited images")
    if not languages_of(instructions):
        raise BadSession("no common language", ", ".join("/".join(sorted(texts)) for texts in instructions))
    return tuple(instructions)


def check_sizes(sizes: Iterable[tuple[int, int]]) -> None:
    """Raise BadSession unless all sizes (width, height) are the same."""
    sizes = list(sizes)
    if len(set(sizes)) > 1:
        raise BadSession("mixed sizes", ", ".join(f"{width}x{height}" for width, height in sizes))


def to_bytes(images: Tensor) -> Tensor:
    """Images in 0..1 as uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
