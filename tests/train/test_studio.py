"""The studio: the same from the same seed, true to its facts, and judged rightly."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from train.instructions import KINDS, Edit, phrase, possible_edits
from train.judge import damage, followed
from train.render import render
from train.scene import COLUMN, CORNERS, FACTS, sample_scenes
from train.studio import INSTRUCTION_SLOTS, held_out_generator, sample_instructions, sample_sessions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_gives_the_same_sessions():
    one, two, other = (sample_sessions(6, 3, generator(seed)) for seed in (1, 1, 2))
    assert one.texts == two.texts and one.edits == two.edits
    assert torch.equal(one.pictures(48, 48), two.pictures(48, 48))
    assert one.texts != other.texts


def test_every_kind_comes_equally_often():
    counts = Counter(edit.kind for row in sample_sessions(3000, 1, generator()).edits for edit in row)
    assert set(counts) == set(KINDS) and len(KINDS) >= 9
    assert all(abs(count / 3000 - 1 / len(KINDS)) < 0.03 for count in counts.values()), counts


def test_an_edit_changes_one_fact_and_never_the_identity():
    sessions = sample_sessions(60, 4, generator(3))
    for before, after, edits in zip(sessions.scenes, sessions.scenes[1:], sessions.edits):
        assert torch.equal(before.identity, after.identity)
        for was, now, edit in zip(before.facts, after.facts, edits):
            changed = [name for name in FACTS if was[COLUMN[name]] != now[COLUMN[name]]]
            assert changed == ([] if edit.kind == "null" else [edit.fact])


def test_a_corner_object_changes_only_its_corner():
    scenes = sample_scenes(4, generator(5))
    facts = scenes.facts.clone()
    facts[:, COLUMN["top left"]] = (facts[:, COLUMN["top left"]] + 1) % 7
    changed = (render(scenes, 64, 80) - render(scenes.with_facts(facts), 64, 80)).abs().amax(dim=(0, 1)) > 0
    assert changed[:20, :20].any() and not changed[20:].any() and not changed[:, 20:].any()


@pytest.mark.parametrize("height,width", [(128, 128), (40, 100), (101, 33)])
def test_any_size_and_each_picture_by_itself(height, width):
    scenes = sample_scenes(3, generator(6))
    together = render(scenes, height, width)
    assert together.shape == (3, 3, height, width) and 0 <= together.min() and together.max() <= 1
    torch.testing.assert_close(together[1:2], render(scenes[1:2], height, width))


def test_objects_stand_once_and_references_have_a_referent():
    sessions = sample_sessions(200, 5, generator(7))
    for scenes, edits in zip(sessions.scenes, sessions.edits):
        for facts, edit in zip(scenes.facts.tolist(), edits):
            standing = [facts[COLUMN[corner]] for corner in CORNERS if facts[COLUMN[corner]]]
            assert len(standing) == len(set(standing))
            if edit.kind in ("remove", "replace"):
                assert facts[COLUMN[edit.fact]] == edit.old != 0


def test_words_name_what_the_edit_does():
    rng = random.Random(0)
    for facts in sample_scenes(40, generator(8)).facts.tolist():
        for kind in KINDS:
            for edit in possible_edits(kind, facts):
                text = phrase(edit, rng)
                assert (text == "") == (kind == "null") and "{" not in text
                if kind in ("remove", "replace"):
                    assert FACTS[edit.fact][edit.old] in text
                if kind not in ("remove", "null"):
                    assert FACTS[edit.fact][edit.new] in text
                if kind == "add" and edit.fact in CORNERS:
                    assert edit.fact in text


def test_instruction_labels_fit_their_slots():
    texts, labels = sample_instructions(300, generator(9))
    assert labels.shape == (300, len(INSTRUCTION_SLOTS))
    for column, size in enumerate(INSTRUCTION_SLOTS.values()):
        said = labels[:, column][labels[:, column] >= 0]
        assert (said < size).all()
    by_text: dict[str, tuple] = {}
    for text, row in zip(texts, labels.tolist()):
        assert by_text.setdefault(text, tuple(row)) == tuple(row), f"{text!r} means two things"


def test_the_checker_takes_the_truth_and_nothing_else():
    sessions = sample_sessions(24, 1, generator(10))
    (edits,), before, after = sessions.edits, sessions.scenes[0], sessions.scenes[1]
    source, truth = render(before, 96, 96), render(after, 96, 96)
    real = torch.tensor([edit.kind != "null" for edit in edits])
    assert followed(truth, before, edits).all()
    softened = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert followed(softened, before, edits).float().mean() > 0.9
    assert not followed(source, before, edits)[real].any()
    assert followed(truth.roll(1, 0), before, edits).float().mean() < 0.1
    assert not followed(torch.rand_like(truth), before, edits).any()


def test_a_null_edit_may_not_change_any_fact():
    scenes = sample_scenes(1, generator(11))
    null = [Edit("null")]
    facts = scenes.facts.clone()
    facts[:, COLUMN["top left"]] = (facts[:, COLUMN["top left"]] + 1) % 7
    assert followed(render(scenes, 64, 64), scenes, null).all()
    assert not followed(render(scenes.with_facts(facts), 64, 64), scenes, null).any()


def test_damage_is_the_difference_where_the_edit_changes_nothing():
    sessions = sample_sessions(6, 1, generator(12))
    (edits,), before, after = sessions.edits, sessions.scenes[0], sessions.scenes[1]
    source, truth = render(before, 48, 48), render(after, 48, 48)
    assert damage(truth, before, edits).max() < 1e-6
    assert damage(source, before, edits).max() < 0.01  # not to follow is no damage
    torch.testing.assert_close(damage(truth + 0.1, before, edits), torch.full((6,), 0.1))


def test_held_out_seeds_are_none_that_training_counts_to():
    assert held_out_generator(1).initial_seed() == held_out_generator(1).initial_seed()
    assert len({held_out_generator(seed).initial_seed() for seed in range(100)}) == 100
    assert all(held_out_generator(seed).initial_seed() > 10**12 for seed in range(100))
