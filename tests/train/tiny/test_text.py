"""Training of the text encoder: held-out texts, noise, and a whole training."""

from __future__ import annotations

import random

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.text_encoder import END_ID, TextEncoder
from studio.sessions import sample_instructions
from train.config import TextConfig
from train.tiny.text import add_token_noise, add_typing_noise, run, split_pool


def test_held_out_texts_are_not_trained_on_and_have_known_words():
    texts, _ = sample_instructions(600, torch.Generator().manual_seed(0))
    chosen, unseen = split_pool(texts, random.Random(0))
    seen = {texts[index] for index in chosen}
    assert unseen and not seen & set(unseen) and seen | set(unseen) == set(texts)
    words = {word for text in seen for word in text.split()}
    assert all(word in words for text in unseen for word in text.split())


def test_typing_and_token_noise_keep_words_and_the_end():
    rng = random.Random(0)
    typed = {add_typing_noise("put it on the left", rng) for _ in range(200)}
    assert len(typed) > 50 and all({"put", "it", "on", "the"} <= set(text.rstrip(".!?,").split()) for text in typed)
    rows = [add_token_noise([300, 301, 302, END_ID], 400, rng, rate=0.5) for _ in range(1000)]
    assert {row[-1] for row in rows} == {END_ID} and {len(row) for row in rows} == {1, 2, 3, 4}
    assert all(0 <= token < 400 for row in rows for token in row)


@pytest.mark.slow
def test_an_encoder_is_trained_and_saved(tmp_path, capsys):
    run(TextConfig(steps=15, min_accuracy=0, pool=600), tmp_path / "text")
    encoder = TextEncoder.from_pretrained(tmp_path / "text")
    texts, _ = sample_instructions(100, torch.Generator().manual_seed(0))
    states = torch.cat(encoder.encode(texts))[:, : encoder.model.config.d_model]
    assert states.isfinite().all() and abs(states.square().mean() - 1) < 0.2
    assert "step 15/15" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
    with pytest.raises(AnchorEditError, match="Keep a finished one with --resume"):
        run(TextConfig(steps=15, min_accuracy=0, pool=600), tmp_path / "text")
    assert run(TextConfig(steps=15, min_accuracy=0, pool=600), tmp_path / "text", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()} == made
