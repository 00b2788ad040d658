"""The host's own ways lead to the same image: its samplers, another pack's attention, a model from a file, a LoRA."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_graphs import (
    LINES,
    LOAD_OPTIONS,
    base_graph,
    native_turn,
    node,
    probe,
    read,
    read_json,
    succeed,
    turn,
    turns_graph,
)
from PIL import Image
from safetensors.torch import save_file

from anchoredit_model.pipeline import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_hosts_samplers_and_the_command_line_make_the_same_turns(host, image_file, tmp_path, cfg):
    graph = turns_graph(LINES, "turns", cfg=cfg)
    memory = ["start", 0]
    for number, line in enumerate(LINES, 1):
        name = f"native{number}"
        graph[f"image{number}"] = probe(f"turn{number}", image=[f"turn{number}", 1])
        native_turn(graph, name, ["tiny", 0], memory, line, cfg)
        graph[f"decode{number}"] = node("VAEDecode", vae=["tiny", 2], samples=[f"{name}_sample", 0])
        graph[f"probe{number}"] = probe(name, session=[name, 0], image=[f"decode{number}", 0])
        memory = [name, 0]
    succeed(host, graph)

    turns, native = read(host, "turns")["latents"], read(host, "native3")["latents"]
    worst = (native - turns).abs().amax(dim=(1, 2, 3))
    print("largest difference of latents by turn:", [f"{value:.1e}" for value in worst.tolist()])
    # rounding: Turn steps along the flow and the host along x0; at 3 the host sends both conditions in one call
    assert worst.max() <= 1e-4

    out = tmp_path / "edits"
    command = [sys.executable, "-m", "anchoredit_model", "edit", str(image_file), "--out", str(out), "--seed", "7"]
    command += ["--dtype", "float32", "--device", "cpu", "--cfg", str(cfg)]
    command += [word for line in LINES for word in ("-i", line)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number in range(1, len(LINES) + 1):
        images = {
            "Turn": read(host, f"turn{number}")["image"].reshape(128, 128, 3),
            "native": read(host, f"native{number}")["image"].reshape(128, 128, 3),
        }
        with Image.open(out / f"turn_{number:02d}.png") as written:
            expected = torch.from_numpy(np.array(written.convert("RGB"))).int()  # 0..255
        for way, image in images.items():
            levels = (image.clamp(0, 1) * 255).round().int()
            difference = (levels - expected).abs().max().item()
            print(f"turn {number}, {way} against the command line: {difference} of 255")
            assert difference <= 1
        assert (images["Turn"] - images["native"]).abs().max() <= 1 / 255


def test_guidance_is_the_same_with_conditions_together_and_apart(host, image_file):
    sure = "write OK on the sign"  # where the bundled model is not, cfg magnifies rounding beyond the bar
    graph = base_graph()
    for name in ("together", "apart"):
        native_turn(graph, name, ["tiny", 0], ["start", 0], sure, cfg=3.0)
        graph[f"probe_{name}"] = probe(name, session=[name, 0])
    graph["split"] = node("AnchorEditApart", model=["apart_apply", 0])
    graph["apart_guider"]["inputs"]["model"] = ["split", 0]
    succeed(host, graph)
    worst = (read(host, "together")["latents"] - read(host, "apart")["latents"]).abs().max().item()
    print(f"largest difference of latents together and apart: {worst:.1e}")
    assert worst <= 1e-5  # one turn: more add up, as each is read with the rounding of those before


def test_attention_of_another_pack_stays_and_changes_nothing(host, image_file):
    graph, lines = turns_graph(LINES[:2], "plain", seed=15), LINES[:2]
    graph["foreign"] = node("AnchorEditForeign", model=["tiny", 0], name="before_calls")
    memory = ["start", 0]
    for number, line in enumerate(lines, 1):
        graph[f"before{number}"] = turn(memory, line, model=["foreign", 0], seed=15)
        memory = [f"before{number}", 0]
    graph["probe_before"] = probe("before", session=memory, image=[memory[0], 1])
    # the host's way: without another pack's node, and with it after ours and before it
    for name in ("alone", "after", "around"):
        memory = ["start", 0]
        for number, line in enumerate(lines, 1):
            turned = f"{name}{number}"
            native_turn(graph, turned, ["foreign", 0] if name == "around" else ["tiny", 0], memory, line)
            memory = [turned, 0]
            if name == "after":
                graph[f"foreign{number}"] = node("AnchorEditForeign", model=[f"{turned}_apply", 0], name="after_calls")
                graph[f"{turned}_guider"]["inputs"]["model"] = [f"foreign{number}", 0]
        graph[f"{name}_image"] = node("VAEDecode", vae=["tiny", 2], samples=[f"{name}2_sample", 0])
        graph[f"probe_{name}"] = probe(name, session=memory, image=[f"{name}_image", 0])
    succeed(host, graph)
    for name, reference in (("before", "plain"), ("after", "alone"), ("around", "alone")):
        for what in ("latents", "image"):
            assert read(host, name)[what].equal(read(host, reference)[what]), f"{name}, {what}"
    for calls in (read_json(host, "before_calls"), read_json(host, "after_calls")):
        # it was called, for self- and cross-attention alike, and saw the longer keys
        assert calls["overridden"] and calls["hooked"] and calls["longest"] > calls["queries"]


def test_a_model_from_a_file_is_the_bundled_one(host, image_file):
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    shutil.copy(TINY / "transformer" / "model.safetensors", folder / "tiny.safetensors")
    graph = turns_graph(LINES[:1], "bundled")
    graph["file"] = node("AnchorEditLoadModel", model_name="tiny.safetensors", **LOAD_OPTIONS)
    graph["turn"] = turn(["start", 0], LINES[0], model=["file", 0])
    graph["probe_file"] = probe("file", session=["turn", 0])
    succeed(host, graph)
    difference = (read(host, "file")["latents"] - read(host, "bundled")["latents"]).abs().max()
    assert difference <= 1e-4


@pytest.fixture
def lora_file(host) -> str:
    """A LoRA of noise on the values of every layer, so that it changes what is remembered too."""
    generator = torch.Generator().manual_seed(0)
    module = "diffusion_model.blocks.{}.self_attn.v.lora_{}.weight"
    lora = {}
    for layer in range(8):
        lora[module.format(layer, "A")] = torch.randn(4, 256, generator=generator) / 16
        lora[module.format(layer, "B")] = torch.randn(256, 4, generator=generator) / 16
    (host.folder / "models" / "loras").mkdir(exist_ok=True)
    save_file(lora, host.folder / "models" / "loras" / "noise.safetensors")
    return "noise.safetensors"


def lora_node(model: list, lora_file: str) -> dict:
    return node("LoraLoaderModelOnly", model=model, lora_name=lora_file, strength_model=1.0)


def test_a_lora_after_apply_memory_is_the_same_as_before_it(host, image_file, lora_file):
    """Keys and values are those of the MODEL that samples, whatever was patched into it on the way."""
    graph = turns_graph(LINES[:1], "first")
    for name in ("plain", "before", "after"):
        native_turn(graph, name, ["tiny", 0], ["turn1", 0], LINES[1])
        graph[f"probe_{name}"] = probe(name, latent=[f"{name}_sample", 0], session=[name, 0])
    graph["lora_before"] = lora_node(["tiny", 0], lora_file)
    graph["before_apply"]["inputs"]["model"] = ["lora_before", 0]
    graph["lora_after"] = lora_node(["after_apply", 0], lora_file)
    graph["after_guider"]["inputs"]["model"] = ["lora_after", 0]
    graph["after"]["inputs"]["model"] = ["lora_after", 0]
    succeed(host, graph)
    plain, before, after = (read(host, name)["latent"] for name in ("plain", "before", "after"))
    assert after.equal(before)
    assert (after - plain).abs().max() > 1e-2

    graph["after_guider"]["inputs"]["model"] = ["after_apply", 0]  # the LoRA is taken out again
    graph["after"]["inputs"]["model"] = ["after_apply", 0]
    succeed(host, graph)
    assert read(host, "after")["latent"].equal(plain)


def test_the_host_is_told_of_the_bytes_that_are_remembered(host, image_file):
    """Weights are loaded so that these bytes stay free, as well as what the host itself estimates."""
    required = {}
    for name, model in (("without", ["tiny", 0]), ("with", ["native_apply", 0])):
        graph = turns_graph(LINES[:1], "turns")
        native_turn(graph, "native", ["tiny", 0], ["turn1", 0], LINES[2])
        graph["required"] = node("AnchorEditRequired", model=model, name=name)
        graph["native_guider"]["inputs"]["model"] = ["required", 0]
        graph["probe_native"] = probe("native", session=["native", 0])
        succeed(host, graph)
        required[name] = read(host, name)["bytes"].item()
    frame = 8 * 2 * 64 * 256 * 4  # layers, keys and values, tokens, width, float32
    assert required["with"] - required["without"] >= 2 * frame


def test_a_lora_changes_the_turns_and_leaves_no_trace(host, image_file, lora_file):
    plain = turns_graph(LINES[:2], "plain")
    succeed(host, plain)
    without = read(host, "plain")["latents"]
    graph = turns_graph(LINES[:2], "lora", model=["lora", 0])
    graph["lora"] = lora_node(["tiny", 0], lora_file)
    succeed(host, graph)
    changed = (read(host, "lora")["latents"] - without).abs().amax(dim=(1, 2, 3))
    assert changed[0] == 0
    assert (changed[1:] > 1e-2).all()

    fresh = base_graph()  # another branch of the same memory, after the LoRA: its blocks must be the plain model's
    succeed(host, fresh | {"again": turn(["start", 0], LINES[0]), "probe": probe("again", session=["again", 0])})
    assert read(host, "again")["latents"].equal(without[:2])


def test_a_lora_given_to_one_turn_holds_from_there_on_and_goes_with_rewind(host, image_file, lora_file):
    """The networks in force belong to the session value at each turn."""
    lines = ["make it blue", "add a crown", "make it green"]
    plain = turns_graph(lines, "one_wire", seed=40)
    assert not {"model", "clip", "vae"} & set(plain["turn1"]["inputs"])  # one wire from node to node
    succeed(host, plain)
    without = read(host, "one_wire")["latents"]
    graph = turns_graph(lines, "patched", seed=40)
    graph["lora"] = lora_node(["tiny", 0], lora_file)
    graph["turn2"]["inputs"]["model"] = ["lora", 0]
    graph["everywhere"] = turn(["turn2", 0], lines[2], seed=40, model=["lora", 0])
    graph["back"] = node("AnchorEditRewind", session=["turn3", 0], turn=1)
    graph["again"] = turn(["back", 0], lines[1], seed=40)
    graph["probe_everywhere"] = probe("everywhere", session=["everywhere", 0])
    graph["probe_again"] = probe("again", session=["again", 0])
    run = succeed(host, graph)
    assert "turn1" not in run.ran  # it was not changed, so it is not made again
    patched = read(host, "patched")["latents"]
    assert patched[:2].equal(without[:2])
    assert not patched[2].equal(without[2])
    assert read(host, "everywhere")["latents"].equal(patched)  # the session carries the LoRA on
    assert read(host, "again")["latents"].equal(without[:3])  # and goes back without it
