"""Sessions on the host's own image editors: tiny random models of each family that the host has."""

import json

import pytest
import torch
from comfyui_graphs import mask, node, policy, probe, read, succeed, turn

LINES = ["make it blue", "add a crown", "remove the hat", "make it night"]
# family -> what Memory Policy has to say so that a turn sees the anchor as well
FAMILIES = ("qwen", "qwen2511", "kontext", "omnigen2", "klein", "flux2")
NEWER = ("qwen2511", "klein", "flux2")  # not in every host
SIZE = (96, 80)  # the image's: it is edited at about this


@pytest.fixture(scope="module")
def small_image(host):
    """A drawing small enough for a test."""
    from PIL import Image

    Image.linear_gradient("L").resize(SIZE).convert("RGB").save(host.folder / "input" / "small.png")


@pytest.fixture(params=FAMILIES)
def family(request, host) -> str:
    known = host.get("/object_info/AnchorEditTinyEditor")["AnchorEditTinyEditor"]["input"]["required"]["family"][0]
    if request.param not in known:
        pytest.skip("this host does not know the family")
    return request.param


def editor_graph(family: str, **start) -> dict:
    networks = {"model": ["editor", 0], "clip": ["editor", 1], "vae": ["editor", 2]}
    return {
        "editor": node("AnchorEditTinyEditor", family=family),
        "image": node("LoadImage", image="small.png"),
        "policy": policy(anchor_frames=1, window=1),
        "start": node("AnchorEditStart", **networks, image=["image", 0], policy=["policy", 0], **start),
    }


def session_graph(family: str, lines: list[str], name: str, **inputs) -> dict:
    graph, session = editor_graph(family), ["start", 0]
    for number, line in enumerate(lines, 1):
        graph[f"turn{number}"] = turn(session, line, **{"steps": 2, **inputs})
        session = [f"turn{number}", 0]
    graph["probe"] = probe(name, session=session, image=[session[0], 1])
    return graph


def test_a_session_sees_the_anchor_and_the_newest_turn(host, small_image, family):
    graph = session_graph(family, LINES, "one")
    run = succeed(host, graph)
    one = read(host, "one")
    assert one["image"].shape == (1, SIZE[1], SIZE[0], 3) and one["latents"].isfinite().all()
    assert len(run.ran) >= 4
    apart = [(a - b).abs().max() for a, b in zip(one["latents"], one["latents"][1:])]
    assert min(apart) > 1e-3, "a turn has changed nothing"

    graph["turn4"]["inputs"]["instruction"] = "make it day"
    graph["probe"]["inputs"]["name"] = "last"
    assert [name for name in succeed(host, graph).ran if name.startswith("turn")] == ["turn4"]
    assert torch.equal(read(host, "last")["latents"][:4], one["latents"][:4])
