"""Every protocol has its stated structure at any number of turns; its instructions describe its edits."""

from __future__ import annotations

import random

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from benchmark.suites.protocols import PROTOCOLS, ProtocolSessions, generate_sessions
from studio.instructions import LANGUAGES, POINTING_BACK, phrase
from studio.scene import ATTRIBUTES, COLUMN, CORNERS, WORN
from studio.sessions import held_out_generator

SESSIONS = 24
State = dict[str, int]


def sessions_of(name: str, turns: int, seed: int = 1, **options) -> ProtocolSessions:
    return generate_sessions(name, SESSIONS, turns, held_out_generator(seed), **options)


def walks(name: str, turns: int):
    """Per session: its states as {attribute: value}, the source first; its edits; its probes."""
    drawn = sessions_of(name, turns)
    for n in range(SESSIONS):
        states = [dict(zip(ATTRIBUTES, scenes.attributes[n].tolist(), strict=True)) for scenes in drawn.sessions.scenes]
        assert len(states) == turns + 1
        yield states, [row[n] for row in drawn.sessions.edits], drawn.probes[n]


def changed(before: State, after: State) -> set[str]:
    return {attribute for attribute in ATTRIBUTES if before[attribute] != after[attribute]}


def lengths(name: str) -> list[int]:
    return [PROTOCOLS[name].min_turns, 12, 17]


CASES = [(name, turns) for name in PROTOCOLS for turns in lengths(name)]


@pytest.mark.parametrize(("name", "turns"), CASES)
def test_states_follow_from_edits_and_probes_from_turns(name, turns):
    for states, edits, probes in walks(name, turns):
        for before, edit, after in zip(states, edits, states[1:], strict=False):
            assert all(before[change.attribute] == change.old for change in edit.changes)
            assert after == before | {change.attribute: change.new for change in edit.changes}
        assert all(1 <= probe.turn <= turns and set(probe.attributes) <= set(ATTRIBUTES) for probe in probes)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_instructions_describe_the_edit_and_seeds_reproduce(name):
    drawn, again, other = sessions_of(name, 12), sessions_of(name, 12), sessions_of(name, 12, seed=2)
    assert drawn.sessions.texts == again.sessions.texts and drawn.probes == again.probes
    assert not torch.equal(drawn.sessions.scenes[0].identity, other.sessions.scenes[0].identity)
    for edits, texts in zip(drawn.sessions.edits, drawn.sessions.texts, strict=True):
        for edit, text in list(zip(edits, texts, strict=True))[:3]:
            assert text in {phrase(edit, random.Random(n), language) for n in range(50) for language in LANGUAGES}
    assert all(text.isascii() for row in sessions_of(name, 12, languages=("en",)).sessions.texts for text in row)


@pytest.mark.parametrize("turns", lengths("no-op"))
def test_no_op_instructions_request_no_change(turns):
    for states, edits, _ in walks("no-op", turns):
        assert all(state == states[0] for state in states) and {edit.kind for edit in edits} == {"null"}


@pytest.mark.parametrize("turns", lengths("a-b-a"))
def test_a_b_a_is_at_the_source_after_every_second_turn(turns):
    kinds = set()
    for states, edits, probes in walks("a-b-a", turns):
        assert all((state == states[0]) == (number % 2 == 0) for number, state in enumerate(states))
        assert [probe.turn for probe in probes] == list(range(2, turns + 1, 2))
        kinds |= {edit.kind for edit in edits}
    assert turns < 12 or {"recolour", "background", "move", "sign", "back to colour", "bring back"} <= kinds


@pytest.mark.parametrize("turns", lengths("black-and-white"))
def test_returning_colours_are_known_only_from_the_anchor(turns):
    for states, edits, probes in walks("black-and-white", turns):
        assert [state["tone"] for state in states] == [0, 0, *[1] * (turns - 2), 0]
        assert len({(state["colour"], state["background"]) for state in states}) == 1
        assert edits[-1].kind == "back to colour" and not {edit.kind for edit in edits[:-1]} & {*POINTING_BACK, "null"}
        (probe,) = probes
        assert probe.turn == turns and {"colour", "background"} <= set(probe.attributes)


@pytest.mark.parametrize("turns", lengths("late-reference"))
def test_late_reference_names_one_object_removed_long_before(turns):
    for states, edits, probes in walks("late-reference", turns):
        ((position, _, thing),) = edits[-1].changes
        assert edits[-1].kind == "bring back" and probes[0].turn == turns and probes[0].attributes == (position,)
        assert states[0][position] == thing == states[-1][position]
        gone = min(2, turns - 1)
        assert all(state[position] == 0 for state in states[gone:-1])
        for state in states[gone:-1]:  # and no second one, that the words could mean
            assert position in WORN or thing not in [state[corner] for corner in CORNERS]
        assert not {edit.kind for edit in edits[:-1]} & {*POINTING_BACK, "null", "black and white"}


@pytest.mark.parametrize("turns", lengths("sanctioned"))
def test_sanctioned_changes_are_never_reverted(turns):
    attributes = set()
    for states, _, probes in walks("sanctioned", turns):
        (attribute,) = changed(states[0], states[1])
        attributes.add(attribute)
        assert all(state[attribute] == states[1][attribute] for state in states[1:])
        assert all(changed(*pair) and attribute not in changed(*pair) for pair in zip(states[1:], states[2:]))
        assert "tone" not in set().union(*(changed(*pair) for pair in zip(states, states[1:])))
        assert [(probe.turn, probe.attributes) for probe in probes] == [
            (turn, (attribute,)) for turn in range(2, turns + 1)
        ]
    assert attributes == {"colour", "background", "headwear"}


@pytest.mark.parametrize("turns", lengths("undo"))
def test_undo_reaches_beyond_the_visible_turns(turns):
    reached = set()
    for states, edits, probes in walks("undo", turns):
        undo = edits[-1]
        reached.add(target := 0 if undo.undone < 0 else turns - 1 - undo.undone)
        assert undo.kind == "undo" and states[-1] == states[target]
        assert target == 0 or 3 <= undo.undone <= 12
        assert all(changed(*pair) for pair in zip(states, states[1:]))
        assert probes[0].turn == turns and set(probes[0].attributes) == changed(states[-2], states[-1])
    assert len(reached) > (3 if turns >= 12 else 0)


def test_impossible_protocols_are_refused():
    for name, count, turns, words in (
        ("black-and-white", 4, 2, "must be 3 or more, got 2"),
        ("chain", 4, 0, "must be 1 or more, got 0"),
        ("chain", 0, 4, "sessions must be 1 or more, got 0"),
        ("spiral", 4, 4, "protocol must be one of chain, no-op"),
    ):
        with pytest.raises(AnchorEditError, match=words):
            generate_sessions(name, count, turns, held_out_generator(1))


def test_sources_of_late_reference_have_an_object():
    sources = sessions_of("late-reference", 2).sessions.scenes[0].attributes
    assert (sources[:, [COLUMN[position] for position in (*WORN, *CORNERS)]] > 0).any(dim=1).all()
