"""Protocols: which sessions an editor is put through, and the turns that probe what is hard to remember.

    chain           edits of every kind, one after the other
    no-op           null edits only: the image must stay, turn after turn
    a-b-a           every second turn reverts the one before: the image must be the source again
    black-and-white the colours go at turn 2 and come back at the last turn; only the anchor still shows them
    late-reference  an object goes at turn 1 or 2 and is asked for again, by its name, at the last turn
    sanctioned      a change at turn 1 that all later edits, of other attributes, must leave as it is: the anchor shows
                    the old state, and must not revert what was asked for
    undo            the last turn goes back several edits, or to the source

All but the chain leave out of their other turns what would blur the answer: edits that refer back, edits that remove
the colours, null edits. A new protocol is a function and an entry in `PROTOCOLS`.
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
_SANCTIONED = {  # the attribute that changes, and the kinds of instruction that change it
    "colour": ("recolour",),
    "background": ("background",),
    "headwear": ("add", "remove", "replace"),
}
_NEAREST_UNDO = 3  # edits; the last ones an editor may still see


@dataclass(frozen=True)
class Probe:
    """At `turn`, 1 being the first edit, these attributes must have their true values; `what` says it in words."""

    what: str
    turn: int
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class ProtocolSessions:
    """Hold N sessions, and for each the probes of its protocol."""

    sessions: Sessions
    probes: list[list[Probe]]

    def __len__(self) -> int:
        return len(self.probes)


class _Draft:
    """Collect one session while a protocol writes it: states (the source first), edits and probes."""

    def __init__(self, source: Attributes, rng: random.Random):
        self.history: list[Attributes] = [source]
        self.edits: list[Edit] = []
        self.probes: list[Probe] = []
        self.rng = rng

    def add(self, edit: Edit) -> None:
        self.history.append(edit.apply(self.history[-1]))
        self.edits.append(edit)

    def add_one_of(self, edits: Sequence[Edit]) -> None:
        self.add(self.rng.choice(edits))

    def fill(
        self, turns: int, kinds: Sequence[str] = _PLAIN_KINDS, allowed: Callable[[Edit], bool] = lambda edit: True
    ) -> None:
        """Add random edits until there are `turns`."""
        while len(self.edits) < turns:
            edit = sample_edit(self.history, self.rng, kinds, visible_states(len(self.history)))
            if allowed(edit):
                self.add(edit)

    def probe(self, what: str, attributes: Sequence[str]) -> None:
        """Probe the newest turn."""
        self.probes.append(Probe(what, len(self.edits), tuple(attributes)))


@dataclass(frozen=True)
class Protocol:
    """Describe how the sessions of a protocol are generated.

    `write` fills a draft with so many turns (None: the studio's own sessions), from sources that `suits` accepts.
    """

    write: Callable[[_Draft, int], None] | None
    min_turns: int = 1
    suits: Callable[[Attributes], bool] = lambda attributes: True


def generate_sessions(
    name: str, count: int, turns: int, generator: torch.Generator, languages: Sequence[str] = LANGUAGES
) -> ProtocolSessions:
    """Generate `count` sessions of `turns` edits by the protocol of this name; equal generators give equal sessions."""
    if name not in PROTOCOLS:
        raise AnchorEditError(f"protocol must be one of {', '.join(PROTOCOLS)}, got '{name}'", "Choose one of them")
    protocol = PROTOCOLS[name]
    if turns < protocol.min_turns:
        raise AnchorEditError(
            f"turns of protocol '{name}' must be {protocol.min_turns} or more, got {turns}", "Use more --turns"
        )
    if count < 1:
        raise AnchorEditError(f"sessions must be 1 or more, got {count}", "Use 1 or more")
    if protocol.write is None:
        return ProtocolSessions(
            sample_sessions(count, turns, generator, languages=languages), [[] for _ in range(count)]
        )
    source = _sources(count, generator, protocol.suits)
    rng = python_rng(generator)
    drafts = [_Draft(attributes, rng) for attributes in source.attributes.tolist()]
    for draft in drafts:
        protocol.write(draft, turns)
    scenes = [
        source.with_attributes(torch.tensor([draft.history[state] for draft in drafts])) for state in range(turns + 1)
    ]
    edits = [[draft.edits[turn] for draft in drafts] for turn in range(turns)]
    texts = [[phrase(edit, rng, pick_language(languages, rng)) for edit in row] for row in edits]
    return ProtocolSessions(Sessions(scenes, edits, texts), [draft.probes for draft in drafts])


def _sources(count: int, generator: torch.Generator, suits: Callable[[Attributes], bool]) -> Scenes:
    """Sample `count` scenes that suit."""
    kept: list[Scenes] = []
    while sum(map(len, kept)) < count:
        scenes = sample_scenes(count, generator)
        kept.append(scenes[torch.tensor([suits(attributes) for attributes in scenes.attributes.tolist()])])
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
            draft.probe("back to the source", tuple(ATTRIBUTES))


def _black_and_white(draft: _Draft, turns: int) -> None:
    draft.fill(1, _KEEPING_COLOURS)  # a colour that the anchor does not show could not be known later
    draft.add_one_of(possible_edits("black and white", draft.history))
    draft.fill(turns - 1, _KEEPING_COLOURS)
    draft.add_one_of(possible_edits("back to colour", draft.history))
    draft.probe("back to colour", ("tone", "colour", "background"))


def _late_reference(draft: _Draft, turns: int) -> None:
    removal = draft.rng.choice(possible_edits("remove", draft.history))
    ((position, thing, _),) = removal.changes

    def elsewhere(edit: Edit) -> bool:
        """Return whether an edit leaves the position alone and adds no second such object: "the star" must be one."""
        return not any(change.attribute == position or _adds(change, position, thing) for change in edit.changes)

    draft.fill(draft.rng.randint(1, min(2, turns - 1)) - 1, allowed=elsewhere)
    draft.add(removal)
    draft.fill(turns - 1, allowed=elsewhere)
    (back,) = (
        edit for edit in possible_edits("bring back", draft.history) if edit.changes == (Change(position, 0, thing),)
    )
    draft.add(back)
    draft.probe("bring back", (position,))


def _sanctioned(draft: _Draft, turns: int) -> None:
    attribute = draft.rng.choice(tuple(_SANCTIONED))
    edits = [edit for kind in _SANCTIONED[attribute] for edit in possible_edits(kind, draft.history)]
    draft.add_one_of([edit for edit in edits if edit.changes[0].attribute == attribute])
    for turn in range(2, turns + 1):
        draft.fill(turn, allowed=lambda edit: edit.changes[0].attribute != attribute)
        draft.probe(f"{attribute} of turn 1", (attribute,))


def _undo(draft: _Draft, turns: int) -> None:
    ways: list[Edit] = []
    while not ways:  # edits may cancel out: then there is nothing to undo, and others are sampled
        del draft.history[1:], draft.edits[:]
        draft.fill(turns - 1)
        states = range(turns - 1)
        far = [state for state in states if not state or _NEAREST_UNDO <= turns - 1 - state <= MOST_UNDONE]
        ways = possible_edits("undo", draft.history, far)
    draft.add_one_of(ways)
    undo = draft.edits[-1]
    what = "back to the source" if undo.undone < 0 else "back to an earlier turn"
    draft.probe(what, [change.attribute for change in undo.changes])


def _way_back(edit: Edit) -> Edit:
    changes = tuple(Change(change.attribute, change.new, change.old) for change in edit.changes)
    return Edit(_WAY_BACK.get(edit.kind, edit.kind), changes)


def _adds(change: Change, position: str, thing: int) -> bool:
    """Return whether a change puts the same kind of object into another corner."""
    return position in CORNERS and change.attribute in CORNERS and change.new == thing


def _has_an_object(attributes: Attributes) -> bool:
    return bool(possible_edits("remove", [attributes]))


PROTOCOLS = {
    "chain": Protocol(None),
    "no-op": Protocol(_no_op),
    "a-b-a": Protocol(_a_b_a, 2),
    "black-and-white": Protocol(_black_and_white, 3),
    "late-reference": Protocol(_late_reference, 2, _has_an_object),
    "sanctioned": Protocol(_sanctioned, 2),
    "undo": Protocol(_undo, 3),
}
