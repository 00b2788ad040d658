"""Batches: one shape each, every session at most once per epoch, the same for any number of processes, resumable."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchoredit_model.errors import AnchorEditError
from train.data.dataset import CachedGroup, EncodedSessions, TextTable
from train.data.loader import Loader
from train.data.session import Problems

SHAPES = [(1, 32, 32), (1, 16, 64), (3, 32, 32)]


def encoded(counts, languages=("en", "zh")) -> EncodedSessions:
    """`counts` sessions of each shape, in two parts. The state of a text encodes its turn and language."""
    groups = []
    for part in range(2):
        for number, (shape, count) in enumerate(zip(SHAPES, counts)):
            turns, height, width = shape
            if not count:
                continue
            keys = [f"{part}_{number}_{row}" for row in range(count)]
            latents = torch.full((count, turns + 1, 16, height // 8, width // 8), number, dtype=torch.bfloat16)
            listed = [[{name: f"{name}{turn}" for name in languages} for turn in range(turns)] for _ in keys]
            groups.append(CachedGroup(shape, latents, keys, listed))
    states = {f"{name}{turn}": torch.full((turn + 2, 4), turn + 1.0) for name in ("en", "zh") for turn in range(3)}
    states |= {name: -rows for name, rows in states.items() if name.startswith("zh")}
    return EncodedSessions(groups, TextTable({"": torch.full((1, 4), 9.0), **states}), Problems())


counts = st.tuples(*[st.integers(0, 12)] * len(SHAPES)).filter(lambda counts: max(counts) >= 6)


@settings(max_examples=50, deadline=None)
@given(counts, st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_an_epoch_has_every_session_of_a_full_batch_once(counts, batch_size, world_size, seed):
    data = encoded(counts)
    loaders = [Loader(data, batch_size, seed, rank, world_size) for rank in range(world_size)]
    seen: Counter = Counter()
    for batches in zip(*(islice(loader, len(loaders[0])) for loader in loaders), strict=True):
        shapes = {tuple(batch["latents"].shape) for batch in batches}
        assert len(shapes) == 1 and shapes.pop()[0] == batch_size  # all processes work at one size
        for batch in batches:
            seen.update(batch["keys"])
            assert len({key.split("_")[1] for key in batch["keys"]}) == 1
            number = int(batch["keys"][0].split("_")[1])
            assert (batch["latents"] == number).all()
    assert set(seen.values()) == {1}
    per_shape = Counter(key.split("_")[1] for key in seen)
    for number, count in enumerate(counts):
        assert per_shape[str(number)] == 2 * count - 2 * count % (batch_size * world_size)
    lines = [line for line in loaders[0].describe() if line.startswith("left out")]
    assert sum(int(line.split(":")[1].split()[0]) for line in lines) == 2 * sum(counts) - sum(seen.values())


@settings(max_examples=25, deadline=None)
@given(counts, st.integers(0, 1000), st.data())
def test_a_resumed_loader_equals_an_uninterrupted_one(counts, seed, data):
    sessions = encoded(counts)
    length = 2 * len(Loader(sessions, 4, seed)) + 3
    stop = data.draw(st.integers(0, length - 1))
    whole = list(islice(Loader(sessions, 4, seed), length))
    first = Loader(sessions, 4, seed)
    parts = list(islice(first, stop))
    second = Loader(encoded(counts), 2, seed, 0, 2), Loader(encoded(counts), 2, seed, 1, 2)  # on more processes
    for loader in second:
        loader.epoch, loader.position = first.epoch, first.position
    for left, right in islice(zip(*second), length - stop):
        parts.append({"keys": left["keys"] + right["keys"]})
    assert [batch["keys"] for batch in parts] == [batch["keys"] for batch in whole]
    third = Loader(sessions, 4, seed)
    third.epoch, third.position = first.epoch, first.position
    assert all(torch.equal(a["texts"], b["texts"]) for a, b in zip(third, whole[stop:]))


def test_epochs_and_seeds_have_different_orders():
    data = encoded((12, 12, 12))
    orders = [Loader(data, 4, seed).order(epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 9 and Loader(data, 4, 2).order(2) == orders[-1]
    assert Loader(data, 2, 2, world_size=2).order(2) == orders[-1]


def test_a_sample_is_in_one_language_and_starts_with_the_null_instruction():
    loader = Loader(encoded((0, 0, 12)), 4, seed=1)
    chosen = Counter()
    for batch in islice(loader, 4 * len(loader)):
        null, instructions = batch["texts"][:, 0], batch["texts"][:, 1:]
        assert (null[:, 0] == 9).all() and not null[:, 1:].any()
        for sample in instructions:  # [T, R, E]
            sign = sample[0, 0, 0].sign()
            for turn in range(3):
                assert (sample[turn, : turn + 2] == sign * (turn + 1)).all() and not sample[turn, turn + 2 :].any()
            chosen[int(sign)] += 1
    assert min(chosen.values()) > 20
    english = Loader(encoded((0, 0, 12)), 4, seed=1, languages={"en": 1.0})
    assert all((batch["texts"] >= 0).all() for batch in islice(english, 6))


def test_impossible_batches_and_languages_are_errors():
    data = encoded((6, 2, 0))
    with pytest.raises(AnchorEditError, match="a batch must have at most 12 sessions, .* got 16"):
        Loader(data, 8, world_size=2)
    with pytest.raises(AnchorEditError, match=r"that the sessions have \(en\), got zh"):
        Loader(encoded((6, 0, 0), languages=("en",)), 2, languages={"zh": 1.0})
    assert "left out always: 4 of 4 x 1 turns at 64x16" in Loader(data, 6).describe()


def test_a_session_in_none_of_the_languages_is_reported():
    data = encoded((6, 0, 0))
    for name in "0_0_2", "1_0_5":
        group, row = data.groups[int(name[0])], int(name[-1])
        group.instructions[row] = [{"zh": "zh0"}]
    loader = Loader(data, 5, seed=1, languages={"en": 1.0, "zh": 0.0})
    seen = {key for batch in islice(loader, 20) for key in batch["keys"]}
    assert seen == {f"{part}_0_{row}" for part in range(2) for row in range(6)} - {"0_0_2", "1_0_5"}
    assert loader.describe() == [
        "2 batches of 5 sessions per epoch",
        "left out always: 2 in none of the languages en, first: 0_0_2 in zh",
    ]
    assert all((batch["texts"] >= 0).all() for batch in islice(loader, 4))


def test_stars_and_chains_are_never_in_one_batch():
    data = encoded((6, 2, 0))
    mixed = EncodedSessions([replace(data.groups[0], star=True), *data.groups[1:]], data.texts, Problems())
    loader = Loader(mixed, 2, seed=1)
    for batch in islice(loader, 2 * len(loader)):
        assert {key.startswith("0_0") for key in batch["keys"]} == {batch["star"]}
    assert "left out each epoch: 2 of 6 x 1 turns at 32x32, as stars" in Loader(mixed, 4).describe()
    assert set(mixed.chains().stars) == {False} and len(mixed.chains()) == len(mixed) - 6
    assert "left out: 6 x a star, first: session 0_0_0: a star (1 edits of one image)" in "\n".join(
        mixed.chains().describe()
    )
    with pytest.raises(AnchorEditError, match="no usable session. 16 x a star"):
        mixed.as_stars().chains()


def test_the_identity_depends_on_data_seed_and_global_batch():
    data = encoded((6, 2, 0))
    own = Loader(data, 2, seed=3, world_size=2).identity
    assert own == Loader(data, 4, seed=3).identity == Loader(data, 1, seed=3, rank=1, world_size=4).identity
    for other in (Loader(encoded((6, 3, 0)), 4, 3), Loader(data, 4, 4), Loader(data, 2, 3)):
        assert other.identity != own
