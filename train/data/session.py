"""Edit sessions, the parts of a source, and the problems of sessions that cannot be used.

A *source* is a list of *parts*: the tar files of a folder (`shards.shard_parts`), or stretches of the studio's
seeded sequence (`procedural.studio_parts`). One process reads a part, and one file of the cache holds it. A session
that cannot be used never stops training: it is left out, counted by reason and named.

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

# Why a session is left out, and the remedy.
REMEDIES = {
    "damaged archive": "copy or write the shard again",
    "empty shard": "leave it out",
    "missing instructions": "add <key>.json",
    "unreadable instructions": 'write {"instructions": [{"en": "..."}, ...]}, one entry per edited image',
    "wrong instruction count": "give as many instructions as edited images",
    "no common language": "give all instructions of a session in one language at least",
    "missing image": "number the images 0 (the source), 1, 2, ... without gaps",
    "duplicate image": "keep one file per number",
    "no edited image": "add <key>.1.jpg, ... or leave the session out",
    "unreadable image": "save it as JPEG again",
    "mixed sizes": "give all images of a session the same size",
    "broken chain": "number a session's turns 1, 2, ..., each with the target of the turn before as its source",
    "duplicate key": "give every session its own key",
    "unreadable table": "give the columns session, turn, source, target and instruction in every row",
    "a star": "give this stage chains; the first stage learns from stars as well",
    "outside the folder": "keep the images in the given folder, with paths relative to it",
}


class BadSession(Exception):
    """Report a session that cannot be used: `reason` is a key of REMEDIES, `detail` says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Problem:
    """Describe what is wrong with one session ("" for a whole file) of one shard, folder or table."""

    origin: str
    key: str
    reason: str
    detail: str

    def __str__(self) -> str:
        where = f"{self.origin} {self.key}" if self.key else self.origin
        return f"{where}: {self.reason} ({self.detail}): {REMEDIES[self.reason]}"


@dataclass
class Problems:
    """Collect the problems of sessions that are left out."""

    found: list[Problem] = field(default_factory=list)

    def add(self, origin: str, key: str, reason: str, detail: str) -> None:
        """Add a problem; the detail becomes one line."""
        self.found.append(Problem(origin, key, reason, " ".join(detail.split())))

    def summary(self) -> list[str]:
        """Return one line per reason, with the count and the first problem."""
        first = {problem.reason: problem for problem in reversed(self.found)}
        counts = Counter(problem.reason for problem in self.found)
        return [f"{count} x {reason}, first: {first[reason]}" for reason, count in counts.most_common()]


@dataclass(frozen=True)
class EditSession:
    """Hold `images` uint8 [T + 1, 3, H, W], the source first, and `instructions`, T texts by language ("en", ...).

    In a `star` every edit starts from the source, otherwise from the image before. Sessions of the studio do not set
    it: its settings say so for all.
    """

    key: str
    images: Tensor
    instructions: tuple[Mapping[str, str], ...]
    star: bool = False

    @property
    def turns(self) -> int:
        """Return the number of edits."""
        return len(self.instructions)


class Part(Protocol):
    """Read one part of a source."""

    @property
    def name(self) -> str:
        """Return a name for messages and files."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a text that changes whenever the sessions do."""
        ...

    def sessions(self, problems: Problems) -> Iterator[EditSession]:
        """Yield the usable sessions, always in the same order; add the others to `problems`."""
        ...


@dataclass(frozen=True)
class WorkSizes:
    """Configure the image sizes of training, as in `geometry.buckets`; the tiny model has only one."""

    resolution: int = 1024
    resolution_step: int = 64
    max_aspect_ratio: float = 4.0

    def fit(self, session: EditSession) -> EditSession:
        """Return the session at the nearest of these sizes, padded as an editing session is."""
        height, width = session.images.shape[-2:]
        size = nearest_bucket(height, width, buckets(self.resolution, self.resolution_step, self.max_aspect_ratio))
        if size == (height, width):
            return session
        canvas = fit_into(height, width, *size).to_work(session.images.float() / 255)
        return replace(session, images=to_bytes(canvas))


def languages_of(instructions: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the languages that all instructions of a session have, in alphabetical order."""
    return tuple(sorted(set.intersection(*(set(texts) for texts in instructions)))) if instructions else ()


def check_instructions(instructions: object, edits: int) -> tuple[dict[str, str], ...]:
    """Return instructions from JSON; raise BadSession unless they are T texts by language."""
    if not isinstance(instructions, list) or not all(
        isinstance(texts, dict) and texts and all(isinstance(text, str) for text in texts.values())
        for texts in instructions
    ):
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
    """Convert images in 0..1 to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
