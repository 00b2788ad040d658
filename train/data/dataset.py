"""Encoded sessions, as batches.

Shapes: N sessions of T edits, latents [T + 1, C, h, w] each; R rows of a text, E width of the text encoder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anchoredit_model.errors import AnchorEditError

from .session import Problems, languages_of

Shape = tuple[int, int, int]  # turns, height and width in pixels: the same for all sessions of a batch


class LoadedBatch(TypedDict):
    """Hold sessions of one shape and layout.

    latents  [B, T + 1, C, h, w] bfloat16, the source first
    texts    [B, T + 1, R, E] bfloat16, the null instruction first, zero rows after the end of a text
    keys     B names
    star     whether every edit starts from the source, otherwise from the image before
    """

    latents: Tensor
    texts: Tensor
    keys: list[str]
    star: bool


def kind_name(shape: Shape, star: bool) -> str:
    """Describe a shape and layout."""
    turns, height, width = shape
    return f"{turns} turns at {width}x{height}{', as stars' if star else ''}"


@dataclass(frozen=True)
class CachedGroup:
    """Hold sessions of one part, shape and layout: `latents` [N, T + 1, C, h, w] bfloat16, memory-mapped."""

    shape: Shape
    latents: Tensor
    keys: list[str]
    instructions: list[list[Mapping[str, str]]]  # [N][T], by language
    star: bool = False


@dataclass(frozen=True)
class TextTable:
    """Hold the `states` [R, E] bfloat16 of texts by the text, without padding."""

    states: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, texts: Sequence[Sequence[str]], rows: int | None = None) -> Tensor:
        """Return the states [B, F, R, E] of texts [B][F], padded with zero rows; R is the longest text's, or `rows`."""
        states = pad_sequence([self.states[text] for row in texts for text in row], batch_first=True)
        if rows is not None:
            states = torch.nn.functional.pad(states, (0, 0, 0, rows - states.shape[1]))
        return states.unflatten(0, (len(texts), len(texts[0])))


class EncodedSessions:
    """Number all sessions of a source in its order; `problems` are those that were left out."""

    def __init__(
        self,
        groups: Sequence[CachedGroup],
        texts: TextTable,
        problems: Problems,
        made_by: Mapping[str, str] | None = None,
    ):
        """Join groups; `made_by` identifies what the "latents" and "texts" were encoded from and by."""
        self.groups, self.texts, self.problems = groups, texts, problems
        self.made_by = dict(made_by or {})
        self._rows = [(group, row) for group in groups for row in range(len(group.keys))]
        self.shapes: list[Shape] = [group.shape for group, _ in self._rows]
        self.stars: list[bool] = [group.star for group, _ in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def identity(self) -> dict[str, str]:
        """Return what identifies the sessions, their order and their encoders, to compare when a run is resumed."""
        digest = hashlib.sha256()
        for group in self.groups:
            digest.update(repr((group.shape, group.keys)).encode())
        return {"data": digest.hexdigest(), **self.made_by}

    def as_stars(self) -> EncodedSessions:
        """Return the same sessions as stars: those of the studio have no layout of their own."""
        groups = [replace(group, star=True) for group in self.groups]
        return EncodedSessions(groups, self.texts, self.problems, self.made_by)

    def chains(self) -> EncodedSessions:
        """Return the chains among the sessions; every star becomes a problem.

        Raises AnchorEditError if there is no chain.
        """
        problems = Problems(list(self.problems.found))
        for group in (group for group in self.groups if group.star):
            for key in group.keys:
                problems.add("session", key, "a star", f"{group.shape[0]} edits of one image")
        groups = [group for group in self.groups if not group.star]
        if not groups:
            raise AnchorEditError("no usable session", f"{'; '.join(problems.summary())}")
        return EncodedSessions(groups, self.texts, problems, self.made_by)

    def key(self, number: int) -> str:
        """Return the name of a session."""
        group, row = self._rows[number]
        return group.keys[row]

    def languages(self, number: int) -> tuple[str, ...]:
        """Return the languages that all instructions of a session have."""
        group, row = self._rows[number]
        return languages_of(group.instructions[row])

    def batch(self, numbers: Sequence[int], languages: Sequence[str], text_rows: int | None = None) -> LoadedBatch:
        """Return sessions of one shape and layout as a batch, each in its language, with `text_rows` rows if given."""
        rows = [self._rows[number] for number in numbers]
        texts = [
            ["", *(turn[language] for turn in group.instructions[row])]
            for (group, row), language in zip(rows, languages)
        ]
        return {
            "latents": torch.stack([group.latents[row] for group, row in rows]),
            "texts": self.texts.batch(texts, text_rows),
            "keys": [group.keys[row] for group, row in rows],
            "star": rows[0][0].star,
        }

    def describe(self) -> list[str]:
        """Describe the sessions, and those left out with the reason, in lines."""
        kinds = sorted(Counter(zip(self.shapes, self.stars)).items())
        return [
            f"{len(self)} sessions, {len(self.texts)} different texts",
            *(f"  {count} x {kind_name(*kind)}" for kind, count in kinds),
            *(f"left out: {line}" for line in self.problems.summary()),
        ]
