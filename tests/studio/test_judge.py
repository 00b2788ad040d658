"""The judge accepts the true edit, also after a round trip through the VAE, and rejects everything else."""

from __future__ import annotations

import random

import pytest
import torch

from anchoredit_model.networks.vae import ImageVAE
from anchoredit_model.pipeline import TINY
from studio.instructions import KINDS, Change, Edit, sample_edit
from studio.judge import Judge, Thresholds
from studio.render import render
from studio.scene import ATTRIBUTES, COLUMN, SUBJECT_TRAITS, TRAIT, Scenes
from studio.sessions import Sessions, held_out_generator, sample_sessions

SIDE, COUNT, TURN = 128, 34, 2  # the third edit of each session: all kinds occur


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return sample_sessions(COUNT, TURN + 1, held_out_generator(21))


@pytest.fixture(scope="module")
def case(sessions):
    before, after, edits = sessions.scenes[TURN], sessions.scenes[TURN + 1], sessions.edits[TURN]
    return before, after, edits, render(before, SIDE, SIDE), render(after, SIDE, SIDE)


def successes(images, previous, before, edits) -> torch.Tensor:
    return Judge().judge(images, previous, before, edits).success


@pytest.mark.slow
def test_the_true_edit_succeeds(case):
    before, after, edits, source, truth = case
    verdict = Judge().judge(truth, source, before, edits)
    assert {edit.kind for edit in edits} == set(KINDS)
    assert verdict.success.all() and torch.equal(verdict.attributes, after.attributes)
    assert verdict.damage.max() < 1e-5 and verdict.shift.max() < 1e-3 and verdict.likeness.min() > 0.99


@pytest.mark.slow
def test_the_true_edit_succeeds_after_a_round_trip(case):
    before, _, edits, source, truth = case
    vae = ImageVAE.from_pretrained(TINY / "vae")
    with torch.no_grad():
        passed = torch.cat([vae.decode(vae.encode(part)).clamp(0, 1) for part in truth.split(8)])
    assert successes(passed, source, before, edits).float().mean() > 0.95


@pytest.mark.slow
def test_unchanged_shifted_swapped_and_random_images_fail(case):
    before, after, edits, source, truth = case
    real = torch.tensor([edit.kind != "null" for edit in edits])
    assert not successes(source, source, before, edits)[real].any()
    for axis in (-1, -2):
        assert not successes(truth.roll(2, axis), source, before, edits).any()
    assert not successes(truth.roll(1, 0), source, before, edits).any()
    assert not successes(torch.rand_like(truth), source, before, edits).any()


@pytest.mark.slow
def test_another_creature_fails(case):
    before, after, edits, source, _ = case
    columns = [TRAIT[name] for name in SUBJECT_TRAITS]
    identity = after.identity.clone()
    identity[:, columns] = torch.rand(COUNT, len(columns), generator=torch.Generator().manual_seed(1))
    verdict = Judge().judge(render(Scenes(after.attributes, identity), SIDE, SIDE), source, before, edits)
    assert not verdict.identity.any()


@pytest.mark.slow
def test_another_edit_fails(case):
    before, after, edits, source, _ = case
    rng, wrong = random.Random(2), []
    for attributes, expected in zip(before.attributes.tolist(), after.attributes.tolist()):
        other = expected
        while other == expected:
            other = sample_edit([attributes], rng).apply(attributes)
        wrong.append(other)
    images = render(after.with_attributes(torch.tensor(wrong)), SIDE, SIDE)
    assert not successes(images, source, before, edits).any()


@pytest.mark.slow
def test_an_image_painted_over_in_the_right_colour_fails():
    sessions = sample_sessions(12, 1, held_out_generator(22), kinds=("recolour", "background"))
    (edits,), before, after = sessions.edits, sessions.scenes[0], sessions.scenes[1]
    source, truth = render(before, SIDE, SIDE), render(after, SIDE, SIDE)
    changed = ((source - truth).abs().amax(dim=1, keepdim=True) > 0.04).float()
    colour = (truth * changed).sum(dim=(2, 3), keepdim=True) / changed.sum(dim=(2, 3), keepdim=True)
    painted = 0.7 * colour + 0.3 * source.mean(dim=1, keepdim=True)
    assert not successes(painted, source, before, edits).any()


@pytest.mark.slow
def test_an_earlier_failure_is_not_counted_again():
    """The editor failed to add the hat; its next edit is judged from the image without a hat."""
    sessions = sample_sessions(6, 1, held_out_generator(23), kinds=("null",))
    scenes = sessions.scenes[0]
    attributes = scenes.attributes.clone()
    attributes[:, COLUMN["headwear"]], attributes[:, COLUMN["background"]] = 0, 1
    bare = scenes.with_attributes(attributes)
    hat = Edit("add", (Change("headwear", 0, 1),))
    background = Edit("background", (Change("background", 1, 4),))
    judge, source = Judge(), render(bare, SIDE, SIDE)
    first = judge.judge(source, source, bare, [hat] * len(bare))
    assert not first.followed.any() and torch.equal(first.attributes, attributes)
    attributes[:, COLUMN["background"]] = 4
    then = render(bare.with_attributes(attributes), SIDE, SIDE)
    assert judge.judge(then, source, bare.with_attributes(first.attributes), [background] * len(bare)).success.all()


@pytest.mark.slow
def test_attributes_are_read_from_the_image():
    kinds = [kind for kind in KINDS if kind != "null"]
    was, now = sample_sessions(len(kinds), 1, held_out_generator(24), kinds=kinds).scenes
    images = render(now, SIDE, SIDE)
    for number, image in enumerate(images):
        attributes = Judge().read_attributes(image, was[number : number + 1], list(ATTRIBUTES))
        (changed,) = (was.attributes[number] != now.attributes[number]).nonzero().flatten().tolist()
        assert attributes[changed] == now.attributes[number, changed]


@pytest.mark.slow
def test_damage_grows_with_the_change_of_the_rest(case):
    before, _, edits, source, truth = case
    one = slice(0, 6)
    damages = []
    for strength in (0.0, 0.02, 0.05, 0.1):
        image = (truth[one] + strength).clamp(0, 1)
        damages.append(Judge().judge(image, source[one], before[one], edits[one]).damage)
    assert (torch.stack(damages).diff(dim=0) > 0).all()
    assert damages[-1].min() > Thresholds().damage


@pytest.mark.slow
def test_a_small_blot_outside_the_edit_fails_preservation(case):
    before, _, edits, source, truth = case
    blotted = truth.clone()
    blotted[:, :, 60:72, 2:14] = torch.tensor((0.0, 1.0, 0.0))[:, None, None]
    seen = [number for number, edit in enumerate(edits) if edit.kind in ("count", "sign", "expression", "resize")]
    verdict = Judge().judge(blotted[seen], source[seen], before[seen], [edits[number] for number in seen])
    assert not verdict.preservation.any()
