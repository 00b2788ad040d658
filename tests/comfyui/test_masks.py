"""Masked turns on a real host: outside the mask every pixel stays, by every way of making a turn, and in a file."""

import numpy as np
import pytest
import torch
from comfyui_graphs import (
    LINES,
    NETWORKS,
    base_graph,
    mask,
    native_turn,
    node,
    probe,
    read,
    read_json,
    succeed,
    turn,
)
from comfyui_server import server
from PIL import Image, ImageDraw

from anchoredit_model.memory.anchor_memory import AnchorMemory
from anchoredit_model.memory.session_file import load_session
from anchoredit_model.pipeline import AnchorEditPipeline

CELL = 8  # pixels of a latent cell


@pytest.fixture(scope="module")
def large_file(host):
    """4000x3000, with fine structure that no VAE keeps."""
    rows, columns = np.mgrid[:3000, :4000]
    image = Image.fromarray(np.stack([rows * 7 + columns, rows ^ columns, rows * columns], axis=-1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((1200, 900, 2600, 2300), fill=(200, 40, 40))
    image.save(host.folder / "input" / "large.png", compress_level=1)
    return host.folder / "input" / "large.png"


def levels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def save(memory: list, name: str) -> dict:
    return node("AnchorEditSaveSession", session=memory, filename_prefix=name, existing="overwrite")


def session(host, name: str) -> AnchorMemory:
    return load_session(host.folder / "output" / f"{name}.safetensors")


@pytest.mark.parametrize(("file", "turns"), [("drawing.png", 10), ("large.png", 3)])
def test_turns_leave_every_pixel_outside_their_masks(host, image_file, large_file, file, turns):
    source = levels(host.folder / "input" / file)
    size = source.shape[1::-1]  # width, height
    graph, memory, touched = base_graph(), ["start", 0], np.zeros(size[::-1], dtype=bool)
    graph["image"]["inputs"]["image"] = file
    unit = size[0] // 16
    for number in range(1, turns + 1):
        box = (unit * number, unit * (2 + number % 3), 5 * unit, 4 * unit)
        touched[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
        wire = mask(graph, f"mask{number}", size, box)
        graph[f"turn{number}"] = turn(memory, f"{LINES[number % 3]} {number}", mask=wire)
        memory = [f"turn{number}", 0]
    graph["keep"] = save(memory, "masked")
    graph["save"] = node("SaveImage", images=[memory[0], 1], filename_prefix="masked")
    run = succeed(host, graph)
    written = levels(host.folder / "output" / run.outputs["save"]["images"][0]["filename"])
    assert written.shape == source.shape
    assert np.array_equal(written[~touched], source[~touched])
    changed = (written != source).any(axis=-1)
    print(f"{changed.sum()} of {touched.sum()} pixels inside the masks changed")
    assert changed.sum() > touched.sum() / 2

    # the session in a file, opened without the host, goes on in the same way
    pipeline = AnchorEditPipeline.from_pretrained()
    loaded = session(host, "masked")
    assert loaded.last == turns
    loaded = pipeline.turn(loaded, "make it green", mask=loaded.turns[-1].mask)
    onward = (pipeline.image(loaded) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(onward[~touched], source[~touched])


def test_a_masked_session_goes_on_after_a_restart(host, image_file, tmp_path):
    graph = base_graph()
    where = mask(graph, "mask", (128, 128), (20, 24, 60, 50))
    graph["turn1"] = turn(["start", 0], LINES[0], mask=where)
    graph["turn2"] = turn(["turn1", 0], LINES[1], mask=where)
    graph["turn3"] = turn(["turn2", 0], LINES[2], mask=where)
    graph["probe"] = probe("unbroken", session=["turn3", 0], image=["turn3", 1])
    graph["keep"] = save(["turn2", 0], "half")
    succeed(host, graph)
    with server(tmp_path) as again:
        for folder, name in (("output", "half.safetensors"), ("input", "drawing.png")):
            (again.folder / "input" / name).write_bytes((host.folder / folder / name).read_bytes())
        graph["half"] = node("AnchorEditLoadSession", file="half.safetensors", **NETWORKS)
        graph["turn3"]["inputs"]["session"] = ["half", 0]
        del graph["keep"]
        run = succeed(again, graph)
        assert not {"start", "turn1", "turn2"} & set(run.ran)
        for what in ("latents", "image"):
            assert read(again, "unbroken")[what].equal(read(host, "unbroken")[what])


@pytest.mark.parametrize(("sampler", "cfg"), [("ours", 1.0), ("ours", 3.0), ("euler", 1.0), ("dpmpp_2m_sde", 1.0)])
def test_the_hosts_samplers_stay_inside_the_mask(host, image_file, sampler, cfg):
    """Ours makes the Turn node's own edit; with any other one, too, nothing changes outside."""
    graph, memory = base_graph(), ["start", 0]
    where = mask(graph, "mask", (128, 128), (20, 24, 60, 50), value=0.8)
    for number, line in enumerate(LINES[:2], 1):
        name = f"native{number}"
        native_turn(graph, name, ["tiny", 0], memory, line, cfg)
        graph[f"{name}_apply"]["inputs"]["mask"] = where
        if sampler != "ours":
            graph["other"] = node("KSamplerSelect", sampler_name=sampler)
            graph[f"{name}_sample"]["inputs"]["sampler"] = ["other", 0]
        memory = [name, 0]
        graph[f"turn{number}"] = turn(["start", 0] if number == 1 else ["turn1", 0], line, cfg=cfg, mask=where)
    graph["strip"] = node("AnchorEditFilmstrip", session=memory, size=96)
    graph["probe"] = probe("native", session=memory, image=["strip", 0])
    graph["keep"] = save(memory, "native_session")
    graph["probe_turns"] = probe("turns", session=["turn2", 0], image=["turn2", 1])
    succeed(host, graph)
    native, turns = read(host, "native"), read(host, "turns")
    source, first, second = native["image"]
    stored = session(host, "native_session").turns[2].mask[0]
    locked = stored == 0
    assert locked.sum() == 128 * 128 - 60 * 50 and stored.max() == torch.tensor(0.8)
    for image in (first, second):
        assert image[locked].equal(source[locked]) and not image.equal(source)
    cells = torch.nn.functional.max_pool2d((~locked).float()[None], CELL)[0] > 0
    for before, after in zip(native["latents"], native["latents"][1:]):
        assert after[:, ~cells].equal(before[:, ~cells]) and not after.equal(before)
    worst = (native["latents"] - turns["latents"]).abs().max().item()
    print(f"largest difference of latents from the Turn node's: {worst:.1e}")
    assert (worst <= 1e-4) == (sampler == "ours")


def test_a_chain_hands_its_mask_to_every_turn(host, image_file):
    graph = base_graph()
    where = mask(graph, "mask", (128, 128), (20, 24, 60, 50))
    options = {"seed": 31, "steps": 0, "cfg": 0.0, "mask": where}
    graph["chain"] = node("AnchorEditChain", session=["start", 0], instructions="\n".join(LINES), **options)
    memory = ["start", 0]
    for number, line in enumerate(LINES, 1):
        graph[f"turn{number}"] = turn(memory, line, seed=31, mask=where)
        memory = [f"turn{number}", 0]
    graph["probe_chain"] = probe("chain", session=["chain", 0], image=["chain", 1])
    graph["probe_turns"] = probe("turns", session=memory, image=[memory[0], 1])
    succeed(host, graph)
    chain, turns = read(host, "chain"), read(host, "turns")
    assert chain["latents"].equal(turns["latents"]) and chain["image"][-1].equal(turns["image"][0])
    graph["chain"]["inputs"]["instructions"] = "\n".join([*LINES[:2], "make it green"])
    run = succeed(host, graph)
    assert [name.rpartition(".")[2] for name in run.ran if "turn" in name] == ["turn3"]


def test_an_earlier_image_of_a_masked_turn_is_decoded_once(host, image_file):
    """A turn of a masked chain costs one decoding, however many masked turns lie before it."""
    graph, memory = base_graph(), ["start", 0]
    where = mask(graph, "mask", (128, 128), (20, 24, 60, 50))
    graph["counted"] = node("AnchorEditDecodes", vae=["tiny", 2], name="decodes")
    graph["start"]["inputs"]["vae"] = ["counted", 0]
    for number in range(1, 5):
        graph[f"turn{number}"] = turn(memory, LINES[number % 3], seed=33, mask=where)
        memory = [f"turn{number}", 0]
    graph["probe"] = probe("counted", session=memory)
    succeed(host, graph)
    assert read_json(host, "decodes")["decoded"] == 4
