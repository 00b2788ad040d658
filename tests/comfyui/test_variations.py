"""Candidates of one turn on a real host: the turns of their seeds, and picking one of them samples nothing."""

import torch
from comfyui_graphs import LINES, base_graph, mask, node, probe, read, succeed, turn

from anchoredit_model.noise import variation_seeds

COUNT = 3


def variants_graph(name: str, number: int = 2, **inputs) -> dict:
    """Start -> turn 1 -> three candidates -> one of them -> turn 3."""
    graph = base_graph()
    options = {"seed": 7, "steps": 0, "cfg": 0.0, "count": COUNT, **inputs}
    graph["turn1"] = turn(["start", 0], LINES[0])
    graph["variants"] = node("AnchorEditVariations", session=["turn1", 0], instruction=LINES[2], **options)
    graph["pick"] = node("AnchorEditPick", variations=["variants", 0], number=number)
    graph["turn3"] = turn(["pick", 0], LINES[1])
    graph["probe_all"] = probe(f"{name}_all", image=["variants", 1])
    graph["probe_pick"] = probe(f"{name}_pick", session=["pick", 0], image=["pick", 1])
    graph["probe_on"] = probe(f"{name}_on", session=["turn3", 0], image=["turn3", 1])
    return graph


def ran(run) -> set[str]:
    return {name for name in run.ran if not name.startswith("probe")}


def test_candidates_are_turns_and_picking_samples_nothing(host, image_file):
    graph = variants_graph("one", cfg=2.0)
    for number, seed in enumerate(variation_seeds(7, COUNT), 1):
        graph[f"alone{number}"] = turn(["turn1", 0], LINES[2], seed=seed, cfg=2.0)
        graph[f"on{number}"] = turn([f"alone{number}", 0], LINES[1])
        graph[f"probe{number}"] = probe(f"alone{number}", session=[f"on{number}", 0], image=[f"alone{number}", 1])
    run = succeed(host, graph)
    assert run.outputs["variants"]["images"]  # shown on the node
    batch = read(host, "one_all")["image"]
    assert batch.shape == (COUNT, 128, 128, 3)
    seen = []
    for number in (2, 1, 3):
        graph["pick"]["inputs"]["number"] = number
        run = succeed(host, graph)
        assert ran(run) <= {"pick", "turn3"}
        picked, on, alone = (read(host, name) for name in ("one_pick", "one_on", f"alone{number}"))
        assert picked["image"][0].equal(batch[number - 1])
        assert (picked["image"] - alone["image"]).abs().max() <= 1 / 255
        for latents in (picked["latents"], on["latents"]):
            assert (latents - alone["latents"][: len(latents)]).abs().max() <= 1e-4
        seen.append(picked["latents"][2])
    assert not any(one.equal(other) for one, other in zip(seen, seen[1:]))


def test_candidates_stay_inside_a_mask(host, image_file):
    graph = variants_graph("masked")
    graph["variants"]["inputs"]["mask"] = mask(graph, "mask", (128, 128), (20, 24, 60, 50))
    graph["probe1"] = probe("before", image=["turn1", 1])
    succeed(host, graph)
    locked = torch.ones(128, 128, dtype=torch.bool)
    locked[24:74, 20:80] = False
    (before,) = read(host, "before")["image"]
    for image in read(host, "masked_all")["image"]:
        assert image[locked].equal(before[locked]) and not image.equal(before)
    onward = read(host, "masked_on")["image"][0]  # a free turn after it
    assert not onward[locked].equal(before[locked])


def test_candidates_that_do_not_fit_at_once_are_made_one_by_one(host, image_file):
    graph = variants_graph("roomy", seed=23)
    graph["crowded"] = node("AnchorEditCrowded", model=["tiny", 0])
    crowded = variants_graph("tight", seed=23, model=["crowded", 0])
    graph |= {f"tight_{name}": crowded[name] for name in ("variants", "probe_all")}
    graph["tight_probe_all"]["inputs"]["image"] = ["tight_variants", 1]
    run = succeed(host, graph)
    assert "one after the other" in dict(run.texts)["tight_variants"] and "variants" not in dict(run.texts)
    difference = (read(host, "tight_all")["image"] - read(host, "roomy_all")["image"]).abs().max()
    assert difference <= 1 / 255
