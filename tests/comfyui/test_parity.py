"""The same numbers on the host as without it: the artist's native MODEL with the memory in its attention against our
own transformer, in float32, from the image to the image."""

import pytest
import torch
from comfyui_graphs import node, read, succeed, turns_graph

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.images import load_image
from anchoredit_model.pipeline import AnchorEditPipeline

LINES = ["make it blue", "add a crown", "change the background to pink", "", "make it green", "make it black and white"]


@pytest.mark.parametrize("history", ["stream", "refresh"])
@pytest.mark.parametrize("cfg", [0.0, 3.0])
def test_six_turns_with_a_sliding_window(host, image_file, history, cfg):
    graph = turns_graph(LINES, "parity", cfg=cfg)
    graph["policy"] = node(
        "AnchorEditMemoryPolicy", anchor_frames=1, window=2, history=history, kv_device="auto", kv_dtype="auto"
    )
    graph["start"]["inputs"]["policy"] = ["policy", 0]
    succeed(host, graph)
    ours = read(host, "parity")

    pipeline = AnchorEditPipeline.from_pretrained()
    expected = pipeline.start(load_image(image_file), MemoryPolicy(1, 2, history))
    for line in LINES:
        expected = pipeline.turn(expected, line, seed=7, cfg=cfg or None)
    for number, turn in enumerate(expected.turns):
        torch.testing.assert_close(ours[f"text.{number}"], turn.text, atol=1e-5, rtol=0)
    latents = torch.stack([turn.latent for turn in expected.turns])
    worst = (ours["latents"] - latents).abs().amax(dim=(1, 2, 3))
    print("largest difference of latents by turn:", [f"{value:.1e}" for value in worst.tolist()])
    assert worst.max() <= 1e-4
    difference = (ours["image"][0].movedim(-1, 0) - pipeline.image(expected)).abs().max()
    assert difference <= 1 / 255
