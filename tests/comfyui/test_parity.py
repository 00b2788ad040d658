"""The same numbers on the host as without it: the artist's native MODEL with the memory in its attention against our
own transformer, in float32, from the picture to the picture."""

from dataclasses import replace

import pytest
import torch
from comfyui_graphs import node, read, succeed, turns_graph

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.images import load_image
from anchoredit_model.pipeline import AnchorEditPipeline

LINES = ["make it blue", "add a crown", "change the background to pink", "", "make it green", "add a crown"]


@pytest.mark.parametrize("history", ["stream", "refresh"])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_six_turns_with_a_sliding_window(host, picture_file, history, guidance):
    graph = turns_graph(LINES, "parity", guidance=guidance)
    graph["policy"] = node(
        "AnchorEditMemoryPolicy", anchor_frames=1, window=2, history=history, place="auto", kv_dtype="auto"
    )
    graph["start"]["inputs"]["policy"] = ["policy", 0]
    succeed(host, graph)
    ours = read(host, "parity")

    pipeline = AnchorEditPipeline.from_pretrained()
    start = pipeline.start(load_image(picture_file), MemoryPolicy(1, 2, history))
    expected, led = start, start
    by_itself, by_turn = [], []  # largest difference of latents: on our own turns, and each turn on the host's own past
    for number, line in enumerate(LINES, 1):
        options = {"seed": 7, "guidance": guidance or None}
        expected, ahead = pipeline.turn(expected, line, **options), pipeline.turn(led, line, **options)
        torch.testing.assert_close(ours[f"text.{number}"], expected.turns[-1].text, atol=1e-5, rtol=0)
        by_itself.append((ours["latents"][number] - expected.turns[-1].latent).abs().max().item())
        by_turn.append((ours["latents"][number] - ahead.turns[-1].latent).abs().max().item())
        led = led.commit(replace(ahead.turns[-1], latent=ours["latents"][number]))
    for name, worst in (("by itself", by_itself), ("by turn", by_turn)):
        print(f"largest difference of latents, {name}:", [f"{value:.1e}" for value in worst])
    assert (ours["latents"][0] - start.turns[0].latent).abs().max() <= 1e-4
    assert max(by_turn) <= 1e-4
    if not guidance:  # guidance enlarges the rounding of every turn before
        assert max(by_itself) <= 1e-4
    difference = (ours["image"][0].movedim(-1, 0) - pipeline.picture(led if guidance else expected)).abs().max()
    assert difference <= 1 / 255
