"""Instructions of the studio: which edits a scene allows, what each changes, and how people say it.

An `Edit` names its kind and the one fact it changes; `apply` makes the next facts, `phrase` the words. Adding
and replacing name what and where, so that exactly one picture is right.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .scene import COLUMN, CORNERS, FACTS, WORN

KINDS = ("recolour", "background", "add", "remove", "replace", "move", "resize", "expression", "null")
_FACT_OF_KIND = {
    "recolour": "colour",
    "background": "background",
    "move": "place",
    "resize": "size",
    "expression": "expression",
}


@dataclass(frozen=True)
class Edit:
    """One instruction: its kind, the fact it changes (None for null), the fact's old and new value."""

    kind: str
    fact: str | None = None
    old: int = 0
    new: int = 0

    def apply(self, facts: list[int]) -> list[int]:
        """The facts after this edit; `facts` itself stays."""
        after = list(facts)
        if self.fact is not None:
            after[COLUMN[self.fact]] = self.new
        return after


def possible_edits(kind: str, facts: list[int]) -> list[Edit]:
    """Every edit of this kind that the scene allows and that changes it."""
    if kind == "null":
        return [Edit("null")]
    if kind in _FACT_OF_KIND:
        return _changes(kind, _FACT_OF_KIND[kind], facts)
    standing = {facts[COLUMN[corner]] for corner in CORNERS} - {0}
    places = [(name, facts[COLUMN[name]]) for name in (*WORN, *CORNERS)]
    if kind == "remove":
        return [Edit(kind, name, value, 0) for name, value in places if value]
    if kind == "replace":  # only things that have an alternative
        changes = [edit for name, value in places if value for edit in _changes(kind, name, facts)]
    else:
        changes = [edit for name, value in places if not value for edit in _changes(kind, name, facts)]
    return [edit for edit in changes if edit.new and (edit.fact in WORN or edit.new not in standing)]


def sample_edit(facts: list[int], rng: random.Random, kinds: tuple[str, ...] = KINDS) -> Edit:
    """A random edit that the scene allows, every kind equally often where it is possible."""
    for kind in rng.sample(kinds, len(kinds)):
        edits = possible_edits(kind, facts)
        if edits:
            if kind == "add":  # a worn thing or a corner object, evenly; there are many more of the latter
                worn = [edit for edit in edits if edit.fact in WORN]
                objects = [edit for edit in edits if edit.fact not in WORN]
                edits = rng.choice([group for group in (worn, objects) if group])
            return rng.choice(edits)
    return Edit("null")


def phrase(edit: Edit, rng: random.Random, language: str = "en") -> str:
    """One of the ways in which people ask for this edit; "" for null."""
    template = edit.kind
    if edit.kind == "add":
        template = "add worn" if edit.fact in WORN else "add object"
    words = {
        "thing": _name(edit.fact, edit.old) if edit.kind in ("remove", "replace") else _article(edit.fact, edit.new),
        "other": _article(edit.fact, edit.new),
        "corner": edit.fact,
    }
    if edit.kind in _FACT_OF_KIND:
        slot = {"background": "colour"}.get(edit.fact, edit.fact)
        words[slot] = FACTS[edit.fact][edit.new]
    return rng.choice(_phrasings()[language][template]).format(**words)


def _changes(kind: str, fact: str, facts: list[int]) -> list[Edit]:
    old = facts[COLUMN[fact]]
    return [Edit(kind, fact, old, new) for new in range(len(FACTS[fact])) if new != old]


def _name(fact: str | None, value: int) -> str:
    return FACTS[fact][value] if fact else ""


def _article(fact: str | None, value: int) -> str:
    name = _name(fact, value)
    return name if name.endswith("es") else f"a {name}"  # "glasses" has no article


@cache
def _phrasings() -> dict[str, dict[str, list[str]]]:
    return json.loads((Path(__file__).parent / "instructions.json").read_text("utf-8"))
