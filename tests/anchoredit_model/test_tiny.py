"""The bundled model: small enough to ship, of a shape that ComfyUI detects, and it edits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from anchoredit_model.config import TransformerConfig
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from train.instructions import Edit
from train.judge import followed
from train.render import render
from train.scene import COLUMN, FACTS, sample_scenes
from train.studio import held_out_generator


@pytest.fixture(scope="module")
def pipeline() -> AnchorEditPipeline:
    return AnchorEditPipeline.from_pretrained()


def test_it_is_small_and_made_for_comfyui(pipeline):
    assert sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file()) <= 40e6
    sizes = pipeline.transformer.config
    assert sizes == TransformerConfig.named("tiny") and sizes.head_dim == 128 and sizes.text_dim == 4096
    with safe_open(TINY / "transformer" / "model.safetensors", framework="pt") as file:
        assert "head.modulation" in file.keys()
        assert json.loads(file.metadata()["config"])["transformer"]["num_heads"] == sizes.num_heads


def test_it_follows_easy_instructions_over_three_turns(pipeline):
    """A background, then a colour, then a removal, each judged in the picture of its turn; 4 scenes, 3 of 4 right."""
    scenes = sample_scenes(40, held_out_generator(11))
    scenes = scenes[(scenes.fact("background") != 4) & (scenes.fact("colour") != 0) & (scenes.fact("bow tie") == 1)][:4]
    results = []
    for number in range(4):
        scene = scenes[number : number + 1]
        memory = pipeline.start(render(scene, 128, 128)[0])
        chain = (("background", "background", "blue"), ("recolour", "colour", "red"), ("remove", "bow tie", "none"))
        for (kind, fact, value), words in zip(chain, ("make the background blue", "make it red", "remove the bow tie")):
            facts = scene.facts[0].tolist()
            edit = Edit(kind, fact, facts[COLUMN[fact]], FACTS[fact].index(value))
            memory = pipeline.turn(memory, words, seed=number)
            results.append(followed(pipeline.picture(memory)[None], scene, [edit])[0])
            scene = scene.with_facts(torch.tensor([edit.apply(facts)]))
    assert sum(results) >= 9, results
