"""GGUF: the bundled model in 8 bits, loaded by ComfyUI-GGUF, edits as the plain one does.

    COMFYUI_GGUF=~/ComfyUI/custom_nodes/ComfyUI-GGUF ... make test-comfyui        # https://github.com/city96/ComfyUI-GGUF

It runs if that names the pack, and its Python package gguf is there for pytest and for the host.
"""

import os
from pathlib import Path

import pytest
import torch
from comfyui_graphs import LINES, base_graph, node, probe, read, succeed, turn
from comfyui_server import server
from PIL import Image, ImageDraw

from anchoredit_model.pipeline import AnchorEditPipeline

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
PACK = os.environ.get("COMFYUI_GGUF")
if not PACK:
    pytest.skip("no ComfyUI-GGUF: set COMFYUI_GGUF to run this", allow_module_level=True)
DISTILLED = {"steps": 4, "sampler": "renoise", "shift": 1.0, "cfg": 1.0, "anchor_text": "null"}
TRAINED = {**DISTILLED, "slots": "bounded", "stride": 4, "area": 128, "turns": 6}


@pytest.fixture(scope="module")
def gguf_host(tmp_path_factory):
    named = server(tmp_path_factory.mktemp("gguf"))
    if named is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH to run this")
    (named.folder / "custom_nodes" / "gguf").symlink_to(Path(PACK).expanduser())
    folder = named.folder / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    write(AnchorEditPipeline.from_pretrained().transformer.state_dict(), folder / "tiny.gguf")
    drawing = Image.new("RGB", (128, 128), (240, 220, 180))
    ImageDraw.Draw(drawing).ellipse((34, 40, 94, 100), fill=(200, 40, 40))
    drawing.save(named.folder / "input" / "drawing.png")
    with named:
        yield named


def write(state: dict[str, torch.Tensor], path: Path) -> None:
    """As that pack's converter does: matrices of the blocks in Q8_0, all else in float32."""
    writer = gguf.GGUFWriter(str(path), "wan")
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in state.items():
        array = tensor.float().numpy()
        if array.ndim > 4:  # more than a GGUF file can say
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(map(int, array.shape)))
            array = array.reshape(array.shape[0], -1)
        if name.startswith("blocks.") and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, eight), raw_dtype=eight)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_model_edits_like_the_plain_one(gguf_host):
    graph = base_graph()
    graph["gguf"] = node("UnetLoaderGGUF", unet_name="tiny.gguf")
    graph["settings"] = node("AnchorEditModelSettings", model=["gguf", 0], **TRAINED)
    for name, model in (("plain", ["tiny", 0]), ("quantised", ["settings", 0])):
        memory = ["start", 0]
        for number, line in enumerate(LINES, 1):
            graph[f"{name}{number}"] = turn(memory, line, model=model)
            memory = [f"{name}{number}", 0]
        graph[f"probe_{name}"] = probe(name, session=memory, image=[memory[0], 1])
    run = succeed(gguf_host, graph)
    assert not any("not" in text and "trained" in text for _, text in run.texts)
    plain, quantised = read(gguf_host, "plain"), read(gguf_host, "quantised")
    assert torch.equal(plain["latents"][0], quantised["latents"][0])
    apart = (plain["latents"] - quantised["latents"]).abs().amax(dim=(1, 2, 3))[1:]
    moved = (plain["latents"][1:] - plain["latents"][:-1]).abs().amax(dim=(1, 2, 3))
    print("largest difference of latents by turn:", [f"{value:.3f}" for value in apart.tolist()])
    assert (apart > 0).all() and (apart < 0.5 * moved).all()
