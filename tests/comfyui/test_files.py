"""Load Model: every layout gives what our own pipeline makes of the same file, and settings go with the MODEL."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_graphs import LINES, LOAD_OPTIONS, base_graph, node, probe, read, succeed, turn
from safetensors.torch import load_file, save_file

from anchoredit_model.images import load_image
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.pipeline import TINY, AnchorEditPipeline

TURN = {"steps": 2, "cfg": 2.0}  # quick, and as much as plain Wan gets
DIFFUSERS = json.loads((Path(__file__).parents[1] / "golden" / "keymap_official_to_diffusers.json").read_text())


def weights() -> dict[str, torch.Tensor]:
    return load_file(TINY / "transformer" / "model.safetensors")


def diffusers_name(name: str) -> str:
    first = re.sub(r"^blocks\.\d+", "blocks.0", name)
    return DIFFUSERS[first].replace("blocks.0", ".".join(name.split(".")[:2]))


def fp8() -> dict[str, torch.Tensor]:
    """Matrices of the blocks in float8, as they are."""
    return {
        n: w.to(torch.float8_e4m3fn) if n.startswith("blocks.") and w.ndim == 2 else w for n, w in weights().items()
    }


def scaled_fp8() -> dict[str, torch.Tensor]:
    """ComfyUI's own scaled files: every linear layer in float8 over a scale; older hosts read its bias so, too."""
    stored, scale = weights(), 2**-6  # a power of two rounds nothing
    for name in [name for name, tensor in stored.items() if tensor.ndim == 2 and name.endswith(".weight")]:
        stored[name] = (stored[name].float() / scale).to(torch.float8_e4m3fn)
        stored[name.replace(".weight", ".scale_weight")] = torch.tensor(scale)
        bias = name.replace(".weight", ".bias")
        stored[bias] = stored[bias].to(torch.float8_e4m3fn).to(stored[bias].dtype)
    return {**stored, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def write_published(path: Path) -> None:
    torch.save({"generator_ema": {f"model._fsdp_wrapped_module.{name}": w for name, w in weights().items()}}, path)


def write_prefixed(path: Path) -> None:
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in weights().items()}, path)


LAYOUTS = {
    "published.pt": write_published,
    "state_dict.pt": lambda path: torch.save(weights(), path),
    "diffusers.safetensors": lambda path: save_file({diffusers_name(n): w for n, w in weights().items()}, path),
    "prefixed.safetensors": write_prefixed,
    "fp8.safetensors": lambda path: save_file(fp8(), path),
    "scaled_fp8.safetensors": lambda path: save_file(scaled_fp8(), path),
}


@pytest.fixture(scope="module")
def folder(host) -> Path:
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    for name, write in LAYOUTS.items():
        write(folder / name)
    return folder


def load(model_name: str, **options) -> dict:
    return node("AnchorEditLoadModel", model_name=model_name, **{**LOAD_OPTIONS, **options})


def edited(pipeline: AnchorEditPipeline, **options) -> AnchorEditPipeline:
    """The same networks with other edit settings."""
    backbone = TransformerBackbone(pipeline.backbone.transformer, replace(pipeline.edit, **options))
    return AnchorEditPipeline(backbone, pipeline.vae, pipeline.text_encoder)


def difference(host, image_file, name: str, pipeline: AnchorEditPipeline, lines: list[str], **options) -> float:
    """The largest one between a probe's latents and those of our own pipeline."""
    expected = pipeline.start(load_image(image_file), resolution=128)
    for line in lines:
        expected = pipeline.turn(expected, line, seed=7, **options)
    latents = torch.stack([turn.latent for turn in expected.turns])
    return (read(host, name)["latents"] - latents).abs().max().item()


def test_every_layout_makes_the_same_turns_as_without_the_host(host, image_file, folder):
    graph = base_graph()
    for name in LAYOUTS:
        graph[name] = load(name)
        graph[f"{name}_turn"] = turn(["start", 0], LINES[0], model=[name, 0], **TURN)
        graph[f"{name}_probe"] = probe(name, session=[f"{name}_turn", 0])
    succeed(host, graph)
    worst = {
        name: difference(host, image_file, name, AnchorEditPipeline.from_pretrained(folder / name), LINES[:1], **TURN)
        for name in LAYOUTS
    }
    print("largest difference of latents by layout:", {name: f"{value:.1e}" for name, value in worst.items()})
    assert max(worst.values()) <= 1e-4


def test_a_model_of_the_stock_loader_works_and_says_that_it_is_not_trained_to_edit(host, image_file, folder):
    graph = base_graph()
    graph["model"] = node("UNETLoader", unet_name="prefixed.safetensors", weight_dtype="default")
    graph["shifted"] = node("ModelSamplingSD3", model=["model", 0], shift=3.0)
    for name, model in (("stock", "model"), ("shift", "shifted")):
        graph[f"turn_{name}"] = turn(["start", 0], LINES[0], model=[model, 0], steps=2)
        graph[f"probe_{name}"] = probe(name, session=[f"turn_{name}", 0])
    graph["trained"] = turn(["start", 0], LINES[0], steps=1)
    graph["probe_trained"] = probe("trained", session=["trained", 0])
    run = succeed(host, graph)
    pipeline = AnchorEditPipeline.from_pretrained(folder / "prefixed.safetensors")
    assert difference(host, image_file, "stock", pipeline, LINES[:1], steps=2) <= 1e-4
    pipeline = edited(pipeline, shift=3.0)
    assert difference(host, image_file, "shift", pipeline, LINES[:1], steps=2) <= 1e-4
    said = dict(run.texts)
    assert "not known to be trained to edit" in said["turn_stock"]
    assert "2 euler steps, shift 8, cfg 5" in said["turn_stock"]
    assert "shift 3" in said["turn_shift"]
    assert "trained" not in said


def test_widgets_replace_what_the_file_says_and_travel_through_a_lora(host, image_file, folder):
    save_file({"diffusion_model.blocks.0.ffn.0.diff_b": torch.zeros(1024)}, host.folder / "models" / "none.safetensors")
    (host.folder / "models" / "loras").mkdir(exist_ok=True)
    (host.folder / "models" / "none.safetensors").rename(host.folder / "models" / "loras" / "none.safetensors")
    chosen = {"sampler": "euler", "shift": 3.0, "cfg": 1.5, "anchor_prompt": "first_prompt", "slot_mode": "absolute"}
    graph = base_graph()
    graph["file"] = load("published.pt", steps=3, temporal_stride=2, resolution=128, max_turns=3, **chosen)
    graph["lora"] = node("LoraLoaderModelOnly", model=["file", 0], lora_name="none.safetensors", strength_model=1.0)
    graph["start"]["inputs"]["model"] = ["lora", 0]
    graph["one"] = turn(["start", 0], LINES[0], model=["lora", 0])
    graph["two"] = turn(["one", 0], LINES[1], model=["lora", 0])
    graph["three"] = turn(["two", 0], LINES[2], model=["lora", 0])
    graph["probe"] = probe("widgets", session=["three", 0])
    run = succeed(host, graph)
    assert not [line for _, line in run.texts if "trained" in line]  # a published file says how it edits
    pipeline = AnchorEditPipeline.from_pretrained(folder / "published.pt")
    pipeline = edited(pipeline, num_steps=3, temporal_stride=2, resolution=128, max_turns=3, **chosen)
    assert difference(host, image_file, "widgets", pipeline, LINES) <= 1e-4


def test_models_in_fp8_run_a_chain(host, image_file, folder):
    """Of a file in fp8, and cast to it by the stock loader."""
    graph = base_graph()
    graph["file"] = load("fp8.safetensors")
    graph["stock"] = node("UNETLoader", unet_name="prefixed.safetensors", weight_dtype="fp8_e4m3fn")
    settings = {**LOAD_OPTIONS, "sampler": "renoise", "cfg": 1.0, "anchor_prompt": "null", "slot_mode": "bounded"}
    graph["trained"] = node("AnchorEditModelSettings", model=["stock", 0], **settings | {"resolution": 128, "steps": 4})
    for name, model in (("file", "file"), ("cast", "trained"), ("plain", "tiny")):
        memory = ["start", 0]
        for number, line in enumerate(LINES, 1):
            graph[f"{name}{number}"] = turn(memory, line, model=[model, 0], **(TURN if name == "file" else {}))
            memory = [f"{name}{number}", 0]
        graph[f"probe_{name}"] = probe(name, session=memory)
    succeed(host, graph)
    pipeline = AnchorEditPipeline.from_pretrained(folder / "fp8.safetensors")
    assert difference(host, image_file, "file", pipeline, LINES, **TURN) <= 1e-3
    cast, plain = read(host, "cast")["latents"], read(host, "plain")["latents"]
    apart, moved = (cast - plain)[1:].square().mean().sqrt(), (plain[1:] - plain[:-1]).square().mean().sqrt()
    print(f"latents cast to fp8 are off by {apart:.3f}, edits move them by {moved:.3f} (rms)")
    assert 0 < apart < 0.5 * moved
