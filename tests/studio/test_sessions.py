"""The studio: reproducible, consistent with its attributes, every kind equally often, references have referents."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from studio.instructions import KINDS, LANGUAGES, POINTING_BACK, phrase, possible_edits, undo
from studio.render import LAYERS, render
from studio.scene import ATTRIBUTES, COLUMN, CORNERS, START_STYLE, START_TONE, Scenes, sample_scenes
from studio.sessions import (
    INSTRUCTION_SLOTS,
    held_out_generator,
    sample_instructions,
    sample_sessions,
    visible_states,
)
from train.data.procedural import ProceduralConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def histories(seed: int, count: int, turns: int) -> list[list[list[int]]]:
    """The attributes of every state of `count` sessions."""
    scenes = sample_sessions(count, turns, generator(seed)).scenes
    return [list(states) for states in zip(*(state.attributes.tolist() for state in scenes))]


def test_the_same_seed_gives_the_same_sessions():
    one, two, other = (sample_sessions(6, 3, generator(seed)) for seed in (1, 1, 2))
    assert one.texts == two.texts and one.edits == two.edits
    assert torch.equal(one.images(48, 48), two.images(48, 48))
    assert one.texts != other.texts


def test_every_kind_is_sampled_equally_often():
    sessions = sample_sessions(1700, 4, generator())
    first, *later = [Counter(edit.kind for edit in row) for row in sessions.edits]
    assert len(KINDS) >= 15 and set(first) == set(KINDS) - set(POINTING_BACK)
    assert max(first.values()) - min(first.values()) <= 2
    for counts in later:
        assert set(counts) == set(KINDS)
        assert all(abs(count / 100 - 1) < 0.05 for count in counts.values()), counts


def test_an_edit_changes_the_attributes_it_names_and_never_the_identity():
    sessions = sample_sessions(80, 4, generator(3))
    for before, after, edits in zip(sessions.scenes, sessions.scenes[1:], sessions.edits):
        assert torch.equal(before.identity, after.identity)
        for was, now, edit in zip(before.attributes.tolist(), after.attributes.tolist(), edits):
            changed = {name for name in ATTRIBUTES if was[COLUMN[name]] != now[COLUMN[name]]}
            assert changed == {change.attribute for change in edit.changes}
            assert len(changed) == 1 or (edit.kind == "undo" and changed) or edit.kind == "null"
            assert all(
                (was[COLUMN[attribute]], now[COLUMN[attribute]]) == (old, new) for attribute, old, new in edit.changes
            )


def test_shares_set_how_often_kinds_are_sampled():
    even, uneven = (
        Counter(edit.kind for step in sample_sessions(300, 4, generator(12), **how).edits for edit in step)
        for how in ({}, {"shares": {"resize": 4.0, "null": 0.5}})
    )
    assert uneven["resize"] / uneven["move"] == pytest.approx(4 * even["resize"] / even["move"], rel=0.1)
    assert uneven["null"] / uneven["move"] == pytest.approx(0.5 * even["null"] / even["move"], rel=0.1)
    for shares in ((("resise", 2.0),), (("resize", 0.0),)):
        with pytest.raises(AnchorEditError, match=f"shares must be positive .* got .* '{shares[0][0]}'. .*background"):
            ProceduralConfig(turns=1, shares=shares)


def test_in_a_star_every_edit_starts_from_the_source():
    sessions = sample_sessions(30, 3, generator(4), star=True)
    source = sessions.scenes[0].attributes.tolist()
    for after, edits in zip(sessions.scenes[1:], sessions.edits):
        assert after.attributes.tolist() == [edit.apply(attributes) for edit, attributes in zip(edits, source)]


def test_references_to_earlier_images_have_a_visible_referent():
    for states in histories(5, 150, 5):
        for turn in range(1, 6):
            history, seen = states[:turn], visible_states(turn)
            attributes, shown = history[-1], [history[state] for state in seen if state < turn - 1]
            if possible_edits("back to colour", history, seen):
                assert attributes[COLUMN["tone"]] != START_TONE
                assert any(state[COLUMN["tone"]] == START_TONE for state in shown)
            for edit in possible_edits("bring back", history, seen):
                ((name, old, new),) = edit.changes
                assert attributes[COLUMN[name]] == old == 0 and any(state[COLUMN[name]] == new for state in shown)
                names = [ATTRIBUTES[corner][attributes[COLUMN[corner]]] for corner in CORNERS]
                assert ATTRIBUTES[name][new] not in names
            for edit in possible_edits("undo", history, seen):
                assert edit.apply(attributes) in shown
            for edit in possible_edits("style", history, seen):
                plain = any(state[COLUMN["style"]] == START_STYLE for state in shown)
                assert edit.changes[0].new != START_STYLE or plain


def test_uncovered_attributes_were_visible_before():
    """With another value of an attribute that an edit uncovers, an earlier image would differ."""
    colours = ("colour", "background")
    uncovered = 0
    for states in histories(11, 300, 5):
        for turn in range(1, 6):
            history, seen = states[:turn], visible_states(turn)
            shown = [history[state] for state in seen if state < turn - 1]
            bare = [attributes for attributes in shown if not attributes[COLUMN["glasses"]]]
            coloured = [attributes for attributes in shown if attributes[COLUMN["tone"]] == START_TONE]
            removed = [edit.changes[0].attribute for edit in possible_edits("remove", history, seen)]
            eyes = history[-1][COLUMN["eyes"]] in [attributes[COLUMN["eyes"]] for attributes in bare]
            assert ("glasses" in removed) == bool(history[-1][COLUMN["glasses"]] and eyes)
            uncovered += "glasses" in removed
            if possible_edits("back to colour", history, seen):
                for attribute in colours:
                    assert history[-1][COLUMN[attribute]] in [attributes[COLUMN[attribute]] for attributes in coloured]
                uncovered += 1
    assert uncovered > 50
    source = sample_sessions(1, 1, generator(1)).scenes[0]
    hidden = source.with_attributes(source.attributes.clone())
    hidden.attributes[0, COLUMN["glasses"]] = 1
    others = hidden.with_attributes(hidden.attributes.clone())
    others.attributes[0, COLUMN["eyes"]] = (others.attributes[0, COLUMN["eyes"]] + 1) % 3
    assert torch.equal(render(hidden, 128, 128), render(others, 128, 128))


def test_undo_goes_back_to_any_state():
    states = histories(6, 1, 6)[0]
    assert undo(states, 0).apply(states[-1]) == states[0] and undo(states, 0).undone == -1
    assert undo(states, 3).apply(states[-1]) == states[3] and undo(states, 3).undone == 3


@pytest.mark.slow
def test_objects_occur_once_and_edits_are_visible():
    for states in histories(7, 150, 5):
        for attributes in states:
            standing = [attributes[COLUMN[corner]] for corner in CORNERS if attributes[COLUMN[corner]]]
            assert len(standing) == len(set(standing))
    sessions = sample_sessions(170, 3, generator(8))
    for before, after, edits in zip(sessions.scenes, sessions.scenes[1:], sessions.edits):
        differs = (render(before, 64, 64) - render(after, 64, 64)).abs().amax(dim=(1, 2, 3))
        for edit, difference in zip(edits, differs):
            assert (difference > 0.1) if edit.kind != "null" else difference == 0, edit


@pytest.mark.parametrize("language", LANGUAGES)
def test_instructions_name_the_edit(language):
    rng = random.Random(0)
    told: dict[str, tuple] = {}
    for states in histories(9, 60, 3):
        for kind in KINDS:
            for edit in possible_edits(kind, states):
                text = phrase(edit, rng, language)
                assert (text == "") == (kind == "null") and "{" not in text
                # the same words never ask for two things
                what = edit.undone if kind == "undo" else tuple((c.old, c.new) for c in edit.changes)
                where = edit.changes[0].attribute if kind == "add" else ""
                if kind in (
                    "add",
                    "recolour",
                    "background",
                    "move",
                    "resize",
                    "sign",
                    "lighting",
                    "count",
                    "bring back",
                ):
                    what = edit.changes[0].new
                assert kind in ("replace", "remove", "expression", "style") or told.setdefault(
                    text, (kind, what, where)
                ) == (kind, what, where)
                if language == "en" and kind in ("remove", "replace"):
                    assert ATTRIBUTES[edit.changes[0].attribute][edit.changes[0].old] in text
                if language == "en" and kind in ("recolour", "move", "replace", "bring back", "lighting"):
                    assert ATTRIBUTES[edit.changes[0].attribute][edit.changes[0].new] in text


def test_instructions_are_in_both_languages():
    texts = [text for row in sample_sessions(300, 3, generator(10)).texts for text in row if text]
    chinese = sum(not text.isascii() for text in texts) / len(texts)
    assert 0.15 < chinese < 0.25
    only = sample_sessions(50, 3, generator(10), languages=("zh",))
    assert not any(text.isascii() for row in only.texts for text in row if text)


def test_instruction_labels_fit_their_slots():
    texts, labels = sample_instructions(600, generator(11))
    assert labels.shape == (600, len(INSTRUCTION_SLOTS))
    for column, size in enumerate(INSTRUCTION_SLOTS.values()):
        used = labels[:, column][labels[:, column] >= 0]
        assert (used < size).all()
    by_text: dict[str, tuple] = {}
    for text, row in zip(texts, labels.tolist()):
        assert by_text.setdefault(text, tuple(row)) == tuple(row), f"{text!r} means two things"


def test_a_corner_object_changes_only_its_corner():
    scenes = sample_scenes(4, generator(12))
    attributes = scenes.attributes.clone()
    attributes[:, COLUMN["top left"]] = (attributes[:, COLUMN["top left"]] + 1) % 7
    changed = (render(scenes, 64, 80) - render(scenes.with_attributes(attributes), 64, 80)).abs().amax(dim=(0, 1)) > 0
    assert changed[:20, :20].any() and not changed[20:].any() and not changed[:, 20:].any()


@pytest.mark.slow
@pytest.mark.parametrize("height,width", [(128, 128), (40, 100), (101, 33)])
def test_images_of_any_size_are_rendered_independently(height, width):
    scenes = sample_sessions(17, 3, generator(13)).scenes[3]
    together = render(scenes, height, width)
    assert together.shape == (17, 3, height, width) and 0 <= together.min() and together.max() <= 1
    alone = torch.cat([render(scenes[number : number + 1], height, width) for number in range(len(scenes))])
    torch.testing.assert_close(together, alone)


@pytest.mark.slow
def test_compiled_layers_render_the_same_images():
    scenes = sample_sessions(3, 3, generator(14)).scenes[3]
    traced = tuple(torch.compile(layer, backend="eager") for layer in LAYERS)  # what is fused, without the compiler
    torch.testing.assert_close(render(scenes, 48, 48, traced), render(scenes, 48, 48))


def test_held_out_seeds_are_not_used_in_training():
    assert held_out_generator(1).initial_seed() == held_out_generator(1).initial_seed()
    assert len({held_out_generator(seed).initial_seed() for seed in range(100)}) == 100
    assert all(held_out_generator(seed).initial_seed() > 10**12 for seed in range(100))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 128), (64, 96)])
def test_parts_are_painted_within_their_bounds(monkeypatch, size):
    """For every identity, painting without bounds gives the same image."""
    generator = torch.Generator().manual_seed(4)
    scenes = sample_scenes(48, generator)
    scenes = Scenes(scenes.attributes, (scenes.identity > 0.5).float())  # every trait as far as it goes
    rendered = torch.cat([render(scenes[number : number + 1], *size) for number in range(len(scenes))])
    monkeypatch.setattr("studio.render._span", lambda *_: slice(None))
    torch.testing.assert_close(rendered, render(scenes, *size), atol=1e-5, rtol=0)
