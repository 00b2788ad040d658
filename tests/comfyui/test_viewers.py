"""The nodes that look at a session on a real host: files for the strip in the browser, the drift by turn."""

import csv
import io
import urllib.request
from urllib.parse import urlencode

import pytest
from comfyui_graphs import LINES, node, probe, read, succeed, turns_graph
from PIL import Image

from anchoredit_model.drift.curve import drift_curve, table
from anchoredit_model.images import load_image
from anchoredit_model.pipeline import AnchorEditPipeline


def test_the_filmstrip_hands_every_turn_to_the_browser(host, image_file):
    graph = turns_graph([*LINES[:1], ""], "strip", seed=21)
    graph["strip"] = node("AnchorEditFilmstrip", session=["turn2", 0], size=96)
    shown = succeed(host, graph).outputs["strip"]
    assert len(shown["images"]) == 1  # all that a browser without web/ shows
    assert [turn["caption"] for turn in shown["turns"]] == ["", LINES[0], "(null edit)"]
    for turn in shown["turns"]:
        query = urlencode({key: turn[key] for key in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"http://127.0.0.1:{host.port}/view?{query}", timeout=60) as answer:
            assert Image.open(io.BytesIO(answer.read())).size == (128, 128)


@pytest.mark.parametrize("masked", [False, True])
def test_drift_is_measured_as_without_the_host(host, image_file, masked):
    graph = turns_graph(LINES, "drifted", seed=22)
    graph["drift"] = node("AnchorEditDrift", session=["turn3", 0])
    graph["plot"] = probe("plot", image=["drift", 0])
    graph["table"] = node("PreviewAny", source=["drift", 1])
    if masked:
        graph["mask"] = node("SolidMask", value=1.0, width=128, height=128)
        graph["drift"]["inputs"]["mask"] = ["mask", 0]
    run = succeed(host, graph)
    assert read(host, "plot")["image"].shape == (1, 800, 1000, 3)
    assert len(run.outputs["drift"]["images"]) == 1

    pipeline = AnchorEditPipeline.from_pretrained()
    memory = pipeline.start(load_image(image_file))
    for line in LINES:
        memory = pipeline.turn(memory, line, seed=22)
    alone = table(list(drift_curve(memory, lambda turn, before: pipeline.image(memory, turn, before))))
    expected, found = (list(csv.DictReader(io.StringIO(text))) for text in (alone, run.outputs["table"]["text"][0]))
    assert [row["instruction"] for row in found] == ["", *LINES]
    for one, other in zip(expected, found):
        for name in ("likeness", "colour", "cast", "right", "down", "scale", "sharpness", "measured"):
            assert float(other[name]) == pytest.approx(float(one[name]), abs=5e-3)
    assert [words for name, words in run.texts if name == "drift"][0].startswith("turn 3: likeness 0.")


def test_a_mask_of_another_size_is_refused(host, image_file):
    graph = turns_graph(LINES[:1], "sized", seed=21)
    graph["mask"] = node("SolidMask", value=1.0, width=64, height=128)
    graph["drift"] = node("AnchorEditDrift", session=["turn1", 0], mask=["mask", 0])
    run = host.run(graph)
    assert run.error["node_id"] == "drift"
    assert run.error["exception_message"].startswith("Draw the mask at the image's size")
