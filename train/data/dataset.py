"""Encoded sessions, ready to be put into batches.

Shapes: N sessions of T edits, latents [T + 1, C, h, w] each; R rows of a text, E width of the text encoder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anchoredit_model.errors import AnchorEditError

from .session import Problems, languages_of

Shape = tuple[int, int, int]  # turns, height and width in pixels: what the sessions of a batch have in common


def kind_name(shape: Shape, star: bool) -> str:
    """Return a shape and layout in words."""
    turns, height, width = shape
    return f"{turns} turns at {width}x{height}{', as stars' if star else ''}"


@dataclass(frozen=True)
class CachedGroup:
    """Sessions of one part, shape and layout: `latents` [N, T + 1, C, h, w] bfloat16, memory-mapped."""

    shape: Shape
    latents: Tensor
    keys: list[str]
    instructions: list[list[Mapping[str, str]]]  # [N][T], by language
    star: bool = False


@dataclass(frozen=True)
class TextTable:
    """`states` [R, E] bfloat16 of texts by the text: only the rows that say something."""

    states: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, texts: Sequence[Sequence[str]], rows: int | None = None) -> Tensor:
        """States [B, F, R, E] of texts [B][F], zero rows after a text's end; R is the longest text's, or `rows`."""
        states = pad_sequence([self.states[text] for row in texts for text in row], batch_first=True)
        if rows is not None:
            states = torch.nn.functional.pad(states, (0, 0, 0, rows - states.shape[1]))
        return states.unflatten(0, (len(texts), len(texts[0])))


class EncodedSessions:
    """All sessions of a source, numbered in its order; `problems` are those that were left out."""

    def __init__(
        self,
        groups: Sequence[CachedGroup],
        texts: TextTable,
        problems: Problems,
        made_by: Mapping[str, str] | None = None,
    ):
        """made_by: what "latents" and "texts" were encoded from and by, as `identity` says it."""
        self.groups, self.texts, self.problems = groups, texts, problems
        self.made_by = dict(made_by or {})
        self._places = [(group, row) for group in groups for row in range(len(group.keys))]
        self.shapes: list[Shape] = [group.shape for group, _ in self._places]
        self.stars: list[bool] = [group.star for group, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def identity(self) -> dict[str, str]:
        """For resuming: which sessions there are, in which order, and what their latents and texts were made by."""
        digest = hashlib.sha256()
        for group in self.groups:
            digest.update(repr((group.shape, group.keys)).encode())
        return {"data": digest.hexdigest(), **self.made_by}

    def as_stars(self) -> EncodedSessions:
        """Return the same sessions as stars: those of the studio do not say it themselves."""
        groups = [replace(group, star=True) for group in self.groups]
        return EncodedSessions(groups, self.texts, self.problems, self.made_by)

    def chains(self) -> EncodedSessions:
        """Return the chains among the sessions; stars are left out by name.

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
        group, row = self._places[number]
        return group.keys[row]

    def languages(self, number: int) -> tuple[str, ...]:
        """Return the languages in which a session's instructions all are."""
        group, row = self._places[number]
        return languages_of(group.instructions[row])

    def batch(self, numbers: Sequence[int], languages: Sequence[str], text_rows: int | None = None) -> dict:
        """Return sessions of one shape and layout, each in its language, as a batch.

        latents [B, T + 1, C, h, w] and texts [B, T + 1, R, E], both bfloat16; a session's first text is the null
        instruction. keys: B names. star: whether they are stars. zero rows fill up the texts, to `text_rows` if given.
        """
        places = [self._places[number] for number in numbers]
        said = [
            ["", *(turn[language] for turn in group.instructions[row])]
            for (group, row), language in zip(places, languages)
        ]
        return {
            "latents": torch.stack([group.latents[row] for group, row in places]),
            "texts": self.texts.batch(said, text_rows),
            "keys": [group.keys[row] for group, row in places],
            "star": places[0][0].star,
        }

    def describe(self) -> list[str]:
        """Lines for people: what there is, and what was left out and why."""
        kinds = sorted(Counter(zip(self.shapes, self.stars)).items())
        return [
            f"{len(self)} sessions, {len(self.texts)} different texts",
            *(f"  {count} x {kind_name(*kind)}" for kind, count in kinds),
            *(f"left out: {line}" for line in self.problems.summary()),
        ]
