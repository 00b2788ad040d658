"""Little memory on a real host: what a turn costs is said, and running out of it costs a turn at most a fallback."""

import pytest
from comfyui_graphs import LINES, node, probe, read, succeed, turn, turns_graph

STEPS = 2


def exhausted(first: int, times: int) -> dict:
    """Two turns of two steps; during the second one the device has no room from forward `first` on."""
    graph = turns_graph(LINES[:1], "one", seed=21, steps=STEPS)
    graph["exhausted"] = node("AnchorEditExhausted", model=["tiny", 0], first=first, times=times)
    graph["two"] = turn(["turn1", 0], LINES[1], model=["exhausted", 0], seed=21, steps=STEPS)
    graph["probe_two"] = probe("two", session=["two", 0], image=["two", 1])
    return graph


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5])  # reading the source, the first turn, two steps, the commit
def test_running_out_once_moves_keys_and_values_and_changes_no_image(host, image_file, first):
    succeed(host, exhausted(first=100, times=0))
    expected = read(host, "two")
    run = succeed(host, exhausted(first, times=1))
    assert read(host, "two")["image"].equal(expected["image"])
    assert any(shown == "two" and "moved to system RAM" in text for shown, text in run.texts)


def test_running_out_for_good_fails_alone_and_says_what_to_do(host, image_file):
    run = succeed(host, exhausted(first=3, times=2))
    assert any("all models were unloaded" in text for shown, text in run.texts)
    run = host.run(exhausted(first=3, times=99) | {"other": turn(["turn1", 0], LINES[2], seed=3)})
    assert run.error["node_id"] == "two"
    assert run.error["exception_message"].startswith("Use a smaller window or image")
    graph = exhausted(first=100, times=0)  # what was made before is still there
    again = succeed(host, graph)
    assert "turn1" not in again.ran


def test_the_policy_says_what_a_turn_costs(host, image_file):
    graph = turns_graph(LINES[:1], "one")
    options = {"anchor_frames": 1, "window": 4, "history": "stream", "kv_device": "cpu"}
    graph["plain"] = node("AnchorEditMemoryPolicy", **options, kv_dtype="auto")
    graph["known"] = node("AnchorEditMemoryPolicy", **options, kv_dtype="float8_e4m3fn", model=["tiny", 0])
    for name in ("plain", "known"):
        graph[f"{name}_start"] = {**graph["start"], "inputs": {**graph["start"]["inputs"], "policy": [name, 0]}}
        graph[f"{name}_turn"] = turn([f"{name}_start", 0], LINES[0])
        graph[f"{name}_probe"] = probe(name, session=[f"{name}_turn", 0])
    run = succeed(host, graph)
    said = dict(run.texts)
    assert "Wan 14B: 16.8 GB of K/V" in said["plain"]
    assert said["known"].startswith("At 128x128: 1.31 MB of K/V in system RAM (5 visible turns of 0.26 MB)")
    assert "rounded to float8_e4m3fn: 2." in said["known_turn"]
