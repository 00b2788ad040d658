"""Editors: what each remembers of a session, and what the ones without a model return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.memory.visibility import sequence_views
from anchoredit_model.pipeline import AnchorEditPipeline
from benchmark.editors.base import EditorOptions
from benchmark.editors.registry import EDITORS, make_editor
from benchmark.suites.protocols import ProtocolSessions, generate_sessions
from studio.render import render
from studio.sessions import held_out_generator

SIZE, TURNS = 64, 3


@pytest.fixture(scope="module")
def drawn() -> ProtocolSessions:
    return generate_sessions("chain", 6, TURNS, held_out_generator(1))


@pytest.fixture(scope="module")
def source(drawn) -> torch.Tensor:
    return render(drawn.sessions.scenes[0], SIZE, SIZE)[4]


def of(drawn: ProtocolSessions) -> SimpleNamespace:
    """As much of a suite as editors see."""
    return SimpleNamespace(ground_truth=drawn, names=[f"{session:05d}" for session in range(len(drawn))])


def images(editor, drawn: ProtocolSessions, source: torch.Tensor, session: int = 4) -> list[torch.Tensor]:
    editor.start(source, session)
    return [editor.edit(texts[session]) for texts in drawn.sessions.texts]


@pytest.fixture(scope="module")
def edited(small_model, drawn, source):
    """Makes an editor on the small model, with one step a turn; returns it and its images."""

    def edit(name: str, **options):
        editor = make_editor(name, EditorOptions(model=small_model, steps=1, **options), of(drawn))
        return editor, images(editor, drawn, source)

    return edit


def test_pipeline_editor_equals_the_pipeline_under_its_policy(small_model, drawn, source, edited):
    editor, made = edited("pipeline", window=1, history="refresh")
    pipeline = AnchorEditPipeline.from_pretrained(small_model)
    memory = pipeline.start(source, MemoryPolicy(1, 1, "refresh"))
    for texts, image in zip(drawn.sessions.texts, made, strict=True):
        memory = pipeline.turn(memory, texts[4], 4, 1)
        assert torch.equal(pipeline.image(memory), image)
    assert editor.settings["policy"] == MemoryPolicy(1, 1, "refresh").to_json()
    assert editor.settings["model"] == pipeline.backbone.fingerprint[:16] and editor.settings["steps"] == 1
    assert editor.cache_bytes == pipeline.store.nbytes > 0
    assert all(map(torch.equal, made, images(editor, drawn, source)))  # a second session starts from scratch


def test_previous_only_keeps_no_anchor(edited):
    editor, _ = edited("previous-only")
    assert editor.settings["policy"] == MemoryPolicy(0, 1).to_json()


def test_decode_reencode_starts_every_turn_from_the_decoded_image(drawn, source, edited):
    editor, made = edited("decode-reencode")
    editor.start(source, 4)
    seeds = set()
    for texts, before, image in zip(drawn.sessions.texts, [source, *made], made, strict=False):
        assert torch.equal(editor.edit(texts[4]), image)
        assert torch.equal(editor._memory.image, before) and len(editor._memory) == 2
        seeds.add(editor._memory.turns[-1].seed)
    assert len(seeds) == TURNS  # else every turn would add the same noise


def test_bidirectional_differs_from_the_pipeline_only_in_its_views(drawn, source, edited, monkeypatch):
    """With causal views it computes, without remembering anything, what the pipeline does."""
    _, remembered = edited("pipeline", cfg=2.0)
    editor, both_ways = edited("bidirectional", cfg=2.0)
    assert editor.cache_bytes == 0
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(remembered, both_ways))
    monkeypatch.setattr("benchmark.editors.pipeline.bidirectional_views", sequence_views)
    _, causal = edited("bidirectional", cfg=2.0)
    for one, other in zip(remembered, causal):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_editors_without_a_model(drawn, source):
    def edit(name: str) -> list[torch.Tensor]:
        return images(make_editor(name, EditorOptions(), of(drawn)), drawn, source)

    correct = [render(scenes[4:5], SIZE, SIZE)[0] for scenes in drawn.sessions.scenes[1:]]
    assert all(map(torch.equal, edit("oracle"), correct))
    assert all(torch.equal(image, source) for image in edit("no-op"))
    attributes = drawn.sessions.scenes[0].attributes[4].tolist()
    shuffled = edit("shuffled")
    others = [edit.apply(attributes) for n, edit in enumerate(drawn.sessions.edits[0]) if n != 4]
    drawn = [render(drawn.sessions.scenes[0][4:5].with_attributes(torch.tensor([o])), SIZE, SIZE)[0] for o in others]
    assert not torch.equal(shuffled[0], correct[0]) and any(torch.equal(shuffled[0], other) for other in drawn)


def test_shuffled_needs_another_instruction():
    drawn = generate_sessions("no-op", 3, 1, held_out_generator(1))
    editor = make_editor("shuffled", EditorOptions(), of(drawn))
    editor.start(torch.zeros(3, SIZE, SIZE), 0)
    with pytest.raises(AnchorEditError, match="finds no other instruction at turn 1 of session 0"):
        editor.edit("")


@pytest.mark.parametrize("name", sorted(set(EDITORS) - {"pipeline", "bidirectional"}))
def test_unused_editor_options_are_refused(name, drawn):
    with pytest.raises(AnchorEditError, match="does not take --anchor-frames 2.*pipeline"):
        make_editor(name, EditorOptions(anchor_frames=2), of(drawn))
