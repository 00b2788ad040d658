"""Rendered sessions: the same from the same seed, true to their layout, and kept when a run goes on."""

from __future__ import annotations

import pytest
import torch

from train.dataset import load_chunk, main, render_chunk
from train.render import render
from train.studio import sample_sessions

COUNT, TURNS, SIZE = 5, 3, 32


@pytest.mark.parametrize("layout", ["star", "chain"])
def test_the_same_seed_gives_the_same_chunk(layout):
    pictures, texts, kinds = render_chunk(COUNT, TURNS, SIZE, layout, seed=7)
    assert pictures.shape == (COUNT, TURNS + 1, 3, SIZE, SIZE) and pictures.dtype == torch.uint8
    assert [len(row) for row in texts] == [len(row) for row in kinds] == [TURNS] * COUNT
    again = render_chunk(COUNT, TURNS, SIZE, layout, seed=7)
    assert torch.equal(again[0], pictures) and again[1:] == (texts, kinds)
    other = render_chunk(COUNT, TURNS, SIZE, layout, seed=8)
    assert not torch.equal(other[0], pictures) and other[1] != texts


@pytest.mark.parametrize("layout", ["star", "chain"])
def test_pictures_show_each_edit_done_to_what_it_starts_from(layout):
    """In a star that is the source, in a chain the picture before."""
    pictures, texts, kinds = render_chunk(COUNT, TURNS, SIZE, layout, seed=3)
    sessions = sample_sessions(COUNT, TURNS, torch.Generator().manual_seed(3), star=layout == "star")
    source = sessions.scenes[0]
    for session in range(COUNT):
        facts = source.facts[session].tolist()
        for turn, edits in enumerate(sessions.edits):
            edit = edits[session]
            assert (texts[session][turn], kinds[session][turn]) == (sessions.texts[turn][session], edit.kind)
            after = edit.apply(source.facts[session].tolist() if layout == "star" else facts)
            truth = render(source[session : session + 1].with_facts(torch.tensor([after])), SIZE, SIZE)[0]
            shown = pictures[session, turn + 1].float() / 255
            torch.testing.assert_close(shown, truth, atol=1 / 255, rtol=0)
            facts = after


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # takes a minute, changes no picture
    options = ["--sessions", str(COUNT), "--turns", "1", "--size", str(SIZE), "--layout", "star", "--seed", "2"]
    main([*options, "--chunks", "2", "--out", str(tmp_path / "whole")])
    main([*options, "--chunks", "1", "--out", str(tmp_path / "parts")])
    first = tmp_path / "parts" / "star_00000.safetensors"
    finished = first.read_bytes()
    first.write_bytes(b"finished")
    main([*options, "--chunks", "2", "--out", str(tmp_path / "parts")])
    assert first.read_bytes() == b"finished"
    first.write_bytes(finished)
    names = ["star_00000.safetensors", "star_00001.safetensors"]
    for folder in ("whole", "parts"):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == names
    chunks = [load_chunk(tmp_path / "whole" / name) for name in names]
    for name, (pictures, texts, kinds) in zip(names, chunks):
        other = load_chunk(tmp_path / "parts" / name)
        assert torch.equal(other[0], pictures) and other[1:] == (texts, kinds)
    assert not torch.equal(chunks[0][0], chunks[1][0])
    expected = render_chunk(COUNT, 1, SIZE, "star", seed=2 * 1_000_003)
    assert torch.equal(chunks[0][0], expected[0]) and chunks[0][1:] == expected[1:]
