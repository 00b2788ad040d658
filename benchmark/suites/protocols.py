"""Protocols: the sessions an editor is put through, and the turns at which it needs what is hard to know.

    chain           edits of every kind, one after the other
    no-op           nothing is asked; the image must stay, turn after turn
    a-b-a           every second turn takes the one before it back: the image must be the first one again
    black-and-white the colours go at turn 2 and come back at the last turn; only the anchor still knows them
    late-reference  a thing goes at turn 1 or 2 and is asked for again, by its name, at the last turn
    sanctioned      a change at turn 1 that all later edits, of other facts, must leave as it is: the anchor shows
                    the old state, and must not undo what was asked for
    undo            the last turn goes back several edits, or to the first image

All but the chain leave out of their other turns what would blur the question: nothing points back, nothing takes
the colours away, no turn asks for nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from anchoredit_model.errors import AnchorEditError
from studio.instructions import (
    KINDS,
    LANGUAGES,
    MOST_UNDONE,
    POINTING_BACK,
    Attributes,
    Change,
    Edit,
    phrase,
    possible_edits,
    sample_edit,
)
from studio.scene import ATTRIBUTES, CORNERS, Scenes, sample_scenes
from studio.sessions import Sessions, pick_language, python_rng, sample_sessions, visible_states

_PLAIN_KINDS = tuple(kind for kind in KINDS if kind not in (*POINTING_BACK, "black and white", "null"))
_KEEPING_COLOURS = tuple(kind for kind in _PLAIN_KINDS if kind not in ("recolour", "background"))
_WAY_BACK = {"add": "remove", "remove": "bring back", "black and white": "back to colour"}  # others: the same kind
_SANCTIONED = {  # the fact that changes, and the kinds of instruction that change it
    "colour": ("recolour",),
    "background": ("background",),
    "headwear": ("add", "remove", "replace"),
}
_NEAREST_UNDO = 3  # edits; the last ones an editor may still see


@dataclass(frozen=True)
class Probe:
    """What a protocol is about: at `turn`, 1 being the first edit, these facts must be what they truly are."""

    what: str
    turn: int
    facts: tuple[str, ...]


@dataclass(frozen=True)
class ProtocolSessions:
    """N sessions, and for each the marks that its protocol sets."""

    sessions: Sessions
    marks: list[list[Probe]]

    def __len__(self) -> int:
        return len(self.marks)


class _Draft:
    """One session while it is written: states (the source first), edits and marks."""

    def __init__(self, source: Attributes, rng: random.Random):
        self.history: list[Attributes] = [source]
        self.edits: list[Edit] = []
        self.marks: list[Probe] = []
        self.rng = rng

    def add(self, edit: Edit) -> None:
        self.history.append(edit.apply(self.history[-1]))
        self.edits.append(edit)

    def add_one_of(self, edits: Sequence[Edit]) -> None:
        self.add(self.rng.choice(edits))

    def fill(
        self, turns: int, kinds: Sequence[str] = _PLAIN_KINDS, allowed: Callable[[Edit], bool] = lambda edit: True
    ) -> None:
        """Random edits until there are `turns`."""
        while len(self.edits) < turns:
            edit = sample_edit(self.history, self.rng, kinds, visible_states(len(self.history)))
            if allowed(edit):
                self.add(edit)

    def mark(self, what: str, facts: Sequence[str]) -> None:
        """Mark the newest turn."""
        self.marks.append(Probe(what, len(self.edits), tuple(facts)))


@dataclass(frozen=True)
class Protocol:
    """Say how a protocol's sessions are drawn.

    `write` makes a draft a session of so many turns (None: the studio's own sessions); `suits` says of which sources it
    can do that.
    """

    write: Callable[[_Draft, int], None] | None
    least_turns: int = 1
    suits: Callable[[Attributes], bool] = lambda facts: True


def draw_protocol_sessions(
    name: str, count: int, turns: int, generator: torch.Generator, languages: Sequence[str] = LANGUAGES
) -> ProtocolSessions:
    """`count` sessions of `turns` edits by the protocol of this name; the same generator gives the same ones."""
    if name not in PROTOCOLS:
        raise AnchorEditError(f"protocol '{name}' is unknown", f"Choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if turns < protocol.least_turns:
        raise AnchorEditError(f"protocol '{name}' with {turns} turns", f"Ask for {protocol.least_turns} or more")
    if count < 1:
        raise AnchorEditError(f"{count} sessions measure nothing", "Ask for 1 or more")
    if protocol.write is None:
        return ProtocolSessions(
            sample_sessions(count, turns, generator, languages=languages), [[] for _ in range(count)]
        )
    source = _sources(count, generator, protocol.suits)
    rng = python_rng(generator)
    drafts = [_Draft(facts, rng) for facts in source.attributes.tolist()]
    for draft in drafts:
        protocol.write(draft, turns)
    scenes = [
        source.with_attributes(torch.tensor([draft.history[state] for draft in drafts])) for state in range(turns + 1)
    ]
    edits = [[draft.edits[turn] for draft in drafts] for turn in range(turns)]
    texts = [[phrase(edit, rng, pick_language(languages, rng)) for edit in row] for row in edits]
    return ProtocolSessions(Sessions(scenes, edits, texts), [draft.marks for draft in drafts])


def _sources(count: int, generator: torch.Generator, suits: Callable[[Attributes], bool]) -> Scenes:
    """`count` random scenes that suit."""
    kept: list[Scenes] = []
    while sum(map(len, kept)) < count:
        scenes = sample_scenes(count, generator)
        kept.append(scenes[torch.tensor([suits(facts) for facts in scenes.attributes.tolist()])])
    return Scenes(torch.cat([s.attributes for s in kept])[:count], torch.cat([s.identity for s in kept])[:count])


# ---------------------------------------------------------------- the protocols


def _no_op(draft: _Draft, turns: int) -> None:
    for _ in range(turns):
        draft.add(Edit("null"))


def _a_b_a(draft: _Draft, turns: int) -> None:
    while len(draft.edits) < turns:
        draft.fill(len(draft.edits) + 1, (*_PLAIN_KINDS, "black and white"))
        if len(draft.edits) < turns:
            draft.add(_way_back(draft.edits[-1]))
            draft.mark("the first image again", tuple(ATTRIBUTES))


def _black_and_white(draft: _Draft, turns: int) -> None:
    draft.fill(1, _KEEPING_COLOURS)  # a colour that the anchor does not show could not be known later
    draft.add_one_of(possible_edits("black and white", draft.history))
    draft.fill(turns - 1, _KEEPING_COLOURS)
    draft.add_one_of(possible_edits("back to colour", draft.history))
    draft.mark("back to colour", ("tone", "colour", "background"))


def _late_reference(draft: _Draft, turns: int) -> None:
    removal = draft.rng.choice(possible_edits("remove", draft.history))
    ((place, thing, _),) = removal.changes

    def elsewhere(edit: Edit) -> bool:
        """Leaves the place alone and puts no second such thing anywhere: "the star" must stay one thing."""
        return not any(change.attribute == place or _is_thing(change, place, thing) for change in edit.changes)

    draft.fill(draft.rng.randint(1, min(2, turns - 1)) - 1, allowed=elsewhere)
    draft.add(removal)
    draft.fill(turns - 1, allowed=elsewhere)
    (back,) = (
        edit for edit in possible_edits("bring back", draft.history) if edit.changes == (Change(place, 0, thing),)
    )
    draft.add(back)
    draft.mark("bring back", (place,))


def _sanctioned(draft: _Draft, turns: int) -> None:
    fact = draft.rng.choice(tuple(_SANCTIONED))
    edits = [edit for kind in _SANCTIONED[fact] for edit in possible_edits(kind, draft.history)]
    draft.add_one_of([edit for edit in edits if edit.changes[0].attribute == fact])
    for turn in range(2, turns + 1):
        draft.fill(turn, allowed=lambda edit: edit.changes[0].attribute != fact)
        draft.mark(f"{fact} of turn 1", (fact,))


def _undo(draft: _Draft, turns: int) -> None:
    ways: list[Edit] = []
    while not ways:  # edits may cancel out: then there is nothing to undo, and others are tried
        del draft.history[1:], draft.edits[:]
        draft.fill(turns - 1)
        states = range(turns - 1)
        far = [state for state in states if not state or _NEAREST_UNDO <= turns - 1 - state <= MOST_UNDONE]
        ways = possible_edits("undo", draft.history, far)
    draft.add_one_of(ways)
    undo = draft.edits[-1]
    what = "back to the first image" if undo.undone < 0 else "back to an earlier turn"
    draft.mark(what, [change.attribute for change in undo.changes])


def _way_back(edit: Edit) -> Edit:
    changes = tuple(Change(change.attribute, change.new, change.old) for change in edit.changes)
    return Edit(_WAY_BACK.get(edit.kind, edit.kind), changes)


def _is_thing(change: Change, place: str, thing: int) -> bool:
    return place in CORNERS and change.attribute in CORNERS and change.new == thing


def _has_a_thing(facts: Attributes) -> bool:
    return bool(possible_edits("remove", [facts]))


PROTOCOLS = {
    "chain": Protocol(None),
    "no-op": Protocol(_no_op),
    "a-b-a": Protocol(_a_b_a, 2),
    "black-and-white": Protocol(_black_and_white, 3),
    "late-reference": Protocol(_late_reference, 2, _has_a_thing),
    "sanctioned": Protocol(_sanctioned, 2),
    "undo": Protocol(_undo, 3),
}
