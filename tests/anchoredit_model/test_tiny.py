"""The bundled model: small enough to ship, of a shape that ComfyUI detects, and it edits."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from anchoredit_model.config import TransformerConfig
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from studio.instructions import Change, Edit
from studio.judge import Judge
from studio.render import render
from studio.scene import ATTRIBUTES, sample_scenes
from studio.sessions import held_out_generator


@pytest.fixture(scope="module")
def pipeline() -> AnchorEditPipeline:
    return AnchorEditPipeline.from_pretrained()


def test_bundled_model_is_small_and_named_as_comfyui_expects(pipeline):
    assert sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file()) <= 40e6
    sizes = pipeline.backbone.transformer.config
    assert sizes == TransformerConfig.named("tiny") and sizes.head_dim == 128 and sizes.text_dim == 4096
    with safe_open(TINY / "transformer" / "model.safetensors", framework="pt") as file:
        assert "head.modulation" in file.keys()
        assert json.loads(file.metadata()["config"])["transformer"]["num_heads"] == sizes.num_heads


@pytest.mark.slow
def test_bundled_model_edits_over_three_turns(pipeline):
    """Its most reliable edits, as a sign that the files hold a trained model; the benchmark measures quality."""
    scenes = sample_scenes(80, held_out_generator(11))
    scenes = scenes[
        (scenes.attribute("background") < 3) & (scenes.attribute("position") == 1) & (scenes.attribute("lighting") == 0)
    ][:3]
    chain = [
        ("make the background blue", "background", "background", "blue"),
        ("write OK on the sign", "sign", "sign", "OK"),
        ("make it black and white", "black and white", "tone", "black and white"),
    ]
    judge = Judge()
    for number in range(3):
        judged = scenes[number : number + 1]
        previous = render(judged, 128, 128)
        memory = pipeline.start(previous[0])
        for words, kind, fact, value in chain:
            change = Change(fact, int(judged.attribute(fact)[0]), ATTRIBUTES[fact].index(value))
            memory = pipeline.turn(memory, words, seed=number)
            image = pipeline.image(memory)[None]
            verdict = judge.judge(image, previous, judged, [Edit(kind, (change,))])
            assert verdict.followed[0], (number, words)
            previous, judged = image, judged.with_attributes(verdict.attributes)
