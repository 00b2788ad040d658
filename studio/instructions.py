"""Instructions of the studio: which edits a session allows, what each changes, and how people say it.

An `Edit` names its kind and the facts it changes; `apply` makes the next facts, `phrase` the words. An edit is
only offered where exactly one image is right and where it shows: nothing is recoloured in black and white, no
eyes are counted behind glasses, no small letters written in pixel art. What points back (undo, "bring back the
hat", back to colour) is only offered while the state it points to is among those that an editor may still see, and
what uncovers something (eyes behind glasses, colours) only while one of those shows it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from .scene import COLUMN, CORNERS, FACTS, START_STYLE, START_TONE, WORN

_FACT_OF_KIND = {
    "recolour": "colour",
    "background": "background",
    "move": "place",
    "resize": "size",
    "expression": "expression",
    "count": "eyes",
    "sign": "sign",
    "lighting": "lighting",
    "style": "style",
}
KINDS = (
    *_FACT_OF_KIND,
    *("add", "remove", "replace", "black and white", "back to colour", "bring back", "undo", "null"),
)
POINTING_BACK = ("back to colour", "bring back", "undo")  # these need an earlier state than the one before
LANGUAGES = ("en", "zh")
MOST_UNDONE = 12  # edits that people take back by number; the phrasings have a word for each
_PLACES = (*WORN, *CORNERS)  # where a thing can be
_UNDO_ALL_SHARE = 0.25  # of undos that go back to the first image

Facts = Sequence[int]


class Change(NamedTuple):
    """One fact and its value before and after."""

    fact: str
    old: int
    new: int


@dataclass(frozen=True)
class Edit:
    """One instruction: its kind, what it changes (nothing for null), and for an undo the state it goes back to."""

    kind: str
    changes: tuple[Change, ...] = ()
    undone: int = 0  # how many edits an undo takes back; -1: all, back to the first image

    def apply(self, facts: Facts) -> list[int]:
        """Return the facts after this edit; `facts` itself stays."""
        after = list(facts)
        for change in self.changes:
            after[COLUMN[change.fact]] = change.new
        return after


def possible_edits(kind: str, history: Sequence[Facts], visible: Sequence[int] | None = None) -> list[Edit]:
    """Every edit of this kind that changes the newest of the states `history` (the source first) and shows in it.

    `visible`: numbers of the states that an edit may point back to; all of them by default.
    """
    facts = history[-1]
    visible = range(len(history) - 1) if visible is None else [state for state in visible if state < len(history) - 1]
    grey = facts[COLUMN["tone"]] != START_TONE
    if kind == "null":
        return [Edit("null")]
    if kind == "black and white":
        return [] if grey else [Edit(kind, (Change("tone", START_TONE, 1),))]
    if kind == "back to colour":
        known = all(_is_known(fact, history, visible, "tone", START_TONE) for fact in ("colour", "background"))
        return [Edit(kind, (Change("tone", 1, START_TONE),))] if grey and known else []
    if kind == "undo":
        return [undo(history, state) for state in visible if _can_undo(history, state)]
    if kind == "bring back":
        return _bring_back(history, visible)
    if kind == "count" and facts[COLUMN["glasses"]]:
        return []
    if kind == "sign" and FACTS["style"][facts[COLUMN["style"]]] == "pixel art":
        return []
    if kind in ("recolour", "background") and grey:
        return []
    if kind == "style":
        plain = any(history[state][COLUMN["style"]] == START_STYLE for state in visible)
        return [edit for edit in _edits(kind, "style", facts) if plain or edit.changes[0].new != START_STYLE]
    if kind in _FACT_OF_KIND:
        return _edits(kind, _FACT_OF_KIND[kind], facts)
    if kind == "remove":
        eyes = _is_known("eyes", history, visible, "glasses", 0)
        things = [(place, value) for place, value in _things(facts) if place != "glasses" or eyes]
        return [Edit(kind, (Change(place, value, 0),)) for place, value in things]
    if kind == "replace":  # only things that have an alternative
        edits = [edit for place, _ in _things(facts) for edit in _edits(kind, place, facts)]
    else:
        edits = [edit for place in _PLACES if not facts[COLUMN[place]] for edit in _edits(kind, place, facts)]
    return [edit for edit in edits if edit.changes[0].new and _is_free(edit.changes[0], facts)]


def undo(history: Sequence[Facts], state: int) -> Edit:
    """Return the edit that makes the newest of the states `history` what it was at an earlier `state`."""
    pairs = zip(FACTS, history[-1], history[state], strict=True)
    undone = len(history) - 1 - state
    all_of_several = state == 0 and undone > 1
    changes = tuple(Change(fact, now, then) for fact, now, then in pairs if now != then)
    return Edit("undo", changes, -1 if all_of_several else undone)


def sample_edit(
    history: Sequence[Facts],
    rng: random.Random,
    kinds: Sequence[str] = KINDS,
    visible: Sequence[int] | None = None,
    counts: Counter | None = None,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> Edit:
    """Return a random edit that the session allows.

    Of the possible kinds the one that `counts` has least of, which it joins.

    Kinds that are seldom possible catch up this way, so that over many sessions all come equally often, or as
    often as their `shares` say, which are 1 if not given.
    """
    counts = Counter() if counts is None else counts
    for kind in sorted(rng.sample(kinds, len(kinds)), key=lambda kind: counts[kind] / shares.get(kind, 1.0)):
        edits = possible_edits(kind, history, visible)
        if edits:
            counts[kind] += 1
            return _pick(kind, edits, rng)
    return Edit("null")


def phrase(edit: Edit, rng: random.Random, language: str = "en") -> str:
    """One of the ways in which people ask for this edit; "" for null."""
    said = _phrasings()[language]
    template = edit.kind
    words: dict[str, str] = {}
    if edit.kind == "undo":
        template = {1: "undo", -1: "undo all"}.get(edit.undone, "undo some")
        words["number"] = said["numbers"][edit.undone] if edit.undone > 0 else ""
    elif edit.changes:
        fact, old, new = edit.changes[0]
        if edit.kind == "add":
            template = "add worn" if fact in WORN else "add object"
        if (special := f"{edit.kind} {FACTS[fact][new]}") in said["phrases"]:
            template = special
        name = FACTS[fact][old if edit.kind == "remove" or edit.kind == "replace" else new]
        words = {
            "thing": said["names"].get(name, name),
            "a_thing": said["with article"].get(name, name),
            "other": said["with article"].get(FACTS[fact][new], FACTS[fact][new]),
            "value": said["names"].get(FACTS[fact][new], FACTS[fact][new]),
            "corner": said["names"].get(fact, fact),
        }
    return rng.choice(said["phrases"][template]).format(**words)


def _edits(kind: str, fact: str, facts: Facts) -> list[Edit]:
    old = facts[COLUMN[fact]]
    return [Edit(kind, (Change(fact, old, new),)) for new in range(len(FACTS[fact])) if new != old]


def _things(facts: Facts) -> list[tuple[str, int]]:
    """Where something is, and what."""
    return [(place, facts[COLUMN[place]]) for place in _PLACES if facts[COLUMN[place]]]


def _is_known(fact: str, history: Sequence[Facts], visible: Sequence[int], cover: str, bare: int) -> bool:
    """Whether a visible state shows the newest value of a fact, uncovered: the fact `cover` has the value `bare`."""
    seen = [history[state] for state in visible if history[state][COLUMN[cover]] == bare]
    return any(facts[COLUMN[fact]] == history[-1][COLUMN[fact]] for facts in seen)


def _is_free(change: Change, facts: Facts) -> bool:
    """Whether no other corner holds the object already."""
    return change.fact in WORN or all(facts[COLUMN[corner]] != change.new for corner in CORNERS)


def _can_undo(history: Sequence[Facts], state: int) -> bool:
    """Whether going back to `state` changes something, and by no other way than the words say.

    An edit that changed nothing in between would make "the last change" ambiguous.
    """
    steps = range(state, len(history) - 1)
    return all(list(history[step]) != list(history[step + 1]) for step in steps) and list(history[state]) != list(
        history[-1]
    )


def _bring_back(history: Sequence[Facts], visible: Sequence[int]) -> list[Edit]:
    """Things that are gone but were there in a visible state, if their place is free and there is only one such."""
    facts = history[-1]
    gone: dict[str, set[Change]] = {}
    for state in visible:
        for place, value in _things(history[state]):
            change = Change(place, 0, value)
            if not facts[COLUMN[place]] and _is_free(change, facts):
                gone.setdefault(FACTS[place][value], set()).add(change)
    return [Edit("bring back", tuple(changes)) for changes in gone.values() if len(changes) == 1]


def _pick(kind: str, edits: list[Edit], rng: random.Random) -> Edit:
    if kind == "add":  # a worn thing or an object, evenly; there are many more of the latter
        worn = [edit for edit in edits if edit.changes[0].fact in WORN]
        objects = [edit for edit in edits if edit.changes[0].fact not in WORN]
        edits = rng.choice([group for group in (worn, objects) if group])
    if kind == "undo":  # mostly the last change
        last = [edit for edit in edits if edit.undone == 1]
        others = [edit for edit in edits if edit.undone != 1]
        edits = others if others and (not last or rng.random() < _UNDO_ALL_SHARE) else last
    return rng.choice(edits)


@cache
def _phrasings() -> dict[str, dict]:
    return json.loads((Path(__file__).parent / "instructions.json").read_text("utf-8"))
