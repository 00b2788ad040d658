"""Edits and instructions of the studio: which edits a session allows, what they change, how they are phrased.

An `Edit` has a kind and the attributes it changes; `Edit.apply` returns the next attributes, `phrase` the instruction.
An edit is offered only where its result is visible and exactly one image is right: no new colour in black and white,
no number of eyes behind glasses, no small letters in pixel art. Edits that refer to an earlier state (undo, "bring
back the hat", back to colour) are offered only while an editor can still see that state, and edits that uncover
something (eyes behind glasses, colours) only while a visible state shows it.

A *state* is the attributes of a scene after so many edits; a *history* is a list of states, the source first.
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

from .scene import ATTRIBUTES, COLUMN, CORNERS, START_STYLE, START_TONE, WORN

_ATTRIBUTE_OF_KIND = {
    "recolour": "colour",
    "background": "background",
    "move": "position",
    "resize": "size",
    "expression": "expression",
    "count": "eyes",
    "sign": "sign",
    "lighting": "lighting",
    "style": "style",
}
KINDS = (
    *_ATTRIBUTE_OF_KIND,
    *("add", "remove", "replace", "black and white", "back to colour", "bring back", "undo", "null"),
)
POINTING_BACK = ("back to colour", "bring back", "undo")  # these refer to a state before the newest one
LANGUAGES = ("en", "zh")
MOST_UNDONE = 12  # edits that an instruction undoes by number: instructions.json has a word for each number
_OBJECT_ATTRIBUTES = (*WORN, *CORNERS)  # their values are objects, 0 being none
_UNDO_ALL_SHARE = 0.25  # of undos that go back to the source

Attributes = Sequence[int]


class Change(NamedTuple):
    """Hold one attribute and its value before and after an edit."""

    attribute: str
    old: int
    new: int


@dataclass(frozen=True)
class Edit:
    """Describe one edit: its kind, its changes (none for null), and for an undo how many edits it undoes."""

    kind: str
    changes: tuple[Change, ...] = ()
    undone: int = 0  # -1: all, back to the source

    def apply(self, state: Attributes) -> list[int]:
        """Return the attributes after this edit, a copy."""
        after = list(state)
        for change in self.changes:
            after[COLUMN[change.attribute]] = change.new
        return after


def possible_edits(kind: str, history: Sequence[Attributes], visible: Sequence[int] | None = None) -> list[Edit]:
    """Return every edit of this kind that visibly changes the newest state of `history`.

    `visible`: indices of the states that an edit may refer to (default: all).
    """
    state = history[-1]
    visible = range(len(history) - 1) if visible is None else [index for index in visible if index < len(history) - 1]
    grey = state[COLUMN["tone"]] != START_TONE
    if kind == "null":
        return [Edit("null")]
    if kind == "black and white":
        return [] if grey else [Edit(kind, (Change("tone", START_TONE, 1),))]
    if kind == "back to colour":
        known = all(_is_known(name, history, visible, "tone", START_TONE) for name in ("colour", "background"))
        return [Edit(kind, (Change("tone", 1, START_TONE),))] if grey and known else []
    if kind == "undo":
        return [undo(history, index) for index in visible if _can_undo(history, index)]
    if kind == "bring back":
        return _bring_back(history, visible)
    if kind == "count" and state[COLUMN["glasses"]]:
        return []
    if kind == "sign" and ATTRIBUTES["style"][state[COLUMN["style"]]] == "pixel art":
        return []
    if kind in ("recolour", "background") and grey:
        return []
    if kind == "style":
        plain = any(history[index][COLUMN["style"]] == START_STYLE for index in visible)
        return [edit for edit in _edits(kind, "style", state) if plain or edit.changes[0].new != START_STYLE]
    if kind in _ATTRIBUTE_OF_KIND:
        return _edits(kind, _ATTRIBUTE_OF_KIND[kind], state)
    if kind == "remove":
        eyes = _is_known("eyes", history, visible, "glasses", 0)
        objects = [(name, value) for name, value in _objects(state) if name != "glasses" or eyes]
        return [Edit(kind, (Change(name, value, 0),)) for name, value in objects]
    if kind == "replace":  # only where there is an alternative
        edits = [edit for name, _ in _objects(state) for edit in _edits(kind, name, state)]
    else:
        edits = [edit for name in _OBJECT_ATTRIBUTES if not state[COLUMN[name]] for edit in _edits(kind, name, state)]
    return [edit for edit in edits if edit.changes[0].new and _is_unique(edit.changes[0], state)]


def undo(history: Sequence[Attributes], index: int) -> Edit:
    """Return the edit from the newest state of `history` back to the earlier state `index`."""
    pairs = zip(ATTRIBUTES, history[-1], history[index], strict=True)
    undone = len(history) - 1 - index
    all_of_several = index == 0 and undone > 1
    changes = tuple(Change(name, now, then) for name, now, then in pairs if now != then)
    return Edit("undo", changes, -1 if all_of_several else undone)


def sample_edit(
    history: Sequence[Attributes],
    rng: random.Random,
    kinds: Sequence[str] = KINDS,
    visible: Sequence[int] | None = None,
    counts: Counter | None = None,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> Edit:
    """Sample an edit that the session allows and add its kind to `counts`.

    The kind is the possible one that `counts` has least of, relative to its share (default: 1). Kinds that are seldom
    possible catch up this way, so that over many sessions all occur in proportion to `shares`.
    """
    counts = Counter() if counts is None else counts
    for kind in sorted(rng.sample(kinds, len(kinds)), key=lambda kind: counts[kind] / shares.get(kind, 1.0)):
        edits = possible_edits(kind, history, visible)
        if edits:
            counts[kind] += 1
            return _pick(kind, edits, rng)
    return Edit("null")


def phrase(edit: Edit, rng: random.Random, language: str = "en") -> str:
    """Sample an instruction that asks for this edit; "" for null."""
    phrases = _phrases()[language]
    template = edit.kind
    words: dict[str, str] = {}
    if edit.kind == "undo":
        template = {1: "undo", -1: "undo all"}.get(edit.undone, "undo some")
        words["number"] = phrases["numbers"][edit.undone] if edit.undone > 0 else ""
    elif edit.changes:
        attribute, old, new = edit.changes[0]
        values = ATTRIBUTES[attribute]
        if edit.kind == "add":
            template = "add worn" if attribute in WORN else "add object"
        if (special := f"{edit.kind} {values[new]}") in phrases["phrases"]:
            template = special
        thing = values[old if edit.kind in ("remove", "replace") else new]
        words = {
            "thing": phrases["names"].get(thing, thing),
            "a_thing": phrases["with article"].get(thing, thing),
            "other": phrases["with article"].get(values[new], values[new]),
            "value": phrases["names"].get(values[new], values[new]),
            "corner": phrases["names"].get(attribute, attribute),
        }
    return rng.choice(phrases["phrases"][template]).format(**words)


def _edits(kind: str, attribute: str, state: Attributes) -> list[Edit]:
    """Return an edit to every other value of an attribute."""
    old = state[COLUMN[attribute]]
    return [Edit(kind, (Change(attribute, old, new),)) for new in range(len(ATTRIBUTES[attribute])) if new != old]


def _objects(state: Attributes) -> list[tuple[str, int]]:
    """Return the attributes that hold an object, with their values."""
    return [(name, state[COLUMN[name]]) for name in _OBJECT_ATTRIBUTES if state[COLUMN[name]]]


def _is_known(attribute: str, history: Sequence[Attributes], visible: Sequence[int], cover: str, bare: int) -> bool:
    """Say whether a visible state shows the newest value of an attribute.

    A state shows it if the attribute `cover`, which may hide it, has the value `bare`.
    """
    column = COLUMN[attribute]
    seen = [history[index] for index in visible if history[index][COLUMN[cover]] == bare]
    return any(state[column] == history[-1][column] for state in seen)


def _is_unique(change: Change, state: Attributes) -> bool:
    """Say whether no corner has the new object already."""
    return change.attribute in WORN or all(state[COLUMN[corner]] != change.new for corner in CORNERS)


def _can_undo(history: Sequence[Attributes], index: int) -> bool:
    """Say whether going back to the state `index` changes something and can be said without ambiguity.

    An edit in between that changed nothing would make "the last change" ambiguous.
    """
    states = [list(state) for state in history[index:]]
    return states[0] != states[-1] and all(before != after for before, after in zip(states, states[1:]))


def _bring_back(history: Sequence[Attributes], visible: Sequence[int]) -> list[Edit]:
    """Return edits that restore an object of a visible state where its attribute is empty and it is the only one."""
    state = history[-1]
    gone: dict[str, set[Change]] = {}
    for index in visible:
        for name, value in _objects(history[index]):
            change = Change(name, 0, value)
            if not state[COLUMN[name]] and _is_unique(change, state):
                gone.setdefault(ATTRIBUTES[name][value], set()).add(change)
    return [Edit("bring back", tuple(changes)) for changes in gone.values() if len(changes) == 1]


def _pick(kind: str, edits: list[Edit], rng: random.Random) -> Edit:
    if kind == "add":  # an accessory or an object, evenly: there are many more objects
        worn = [edit for edit in edits if edit.changes[0].attribute in WORN]
        objects = [edit for edit in edits if edit.changes[0].attribute not in WORN]
        edits = rng.choice([group for group in (worn, objects) if group])
    if kind == "undo":  # mostly the last change
        last = [edit for edit in edits if edit.undone == 1]
        others = [edit for edit in edits if edit.undone != 1]
        edits = others if others and (not last or rng.random() < _UNDO_ALL_SHARE) else last
    return rng.choice(edits)


@cache
def _phrases() -> dict[str, dict]:
    return json.loads((Path(__file__).parent / "instructions.json").read_text("utf-8"))
