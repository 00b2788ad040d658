"""Mistakes: the error is on the node that has to be changed and begins with what to do, and the rest is not lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfyui_graphs import (
    LINES,
    LOAD_OPTIONS,
    NETWORKS,
    base_graph,
    mask,
    native_turn,
    node,
    policy,
    probe,
    read,
    succeed,
    turn,
)
from safetensors.torch import load_file, save_file

from anchoredit_model.pipeline import TINY

TURN1, START = ["turn1", 0], ["start", 0]
OWN = "Use the model it was started with"
WAN = "Load Wan 2.1 text-to-video"


@dataclass(frozen=True)
class Mistake:
    """Nodes added to a sound graph, the node that has to complain, and the words that it begins with."""

    nodes: dict
    where: str
    words: str
    wire: str = "session"  # what the last node gives, which somebody has to want
    slot: int = 0  # at which output


def bent(kind: str) -> dict:
    return {"bent": node("AnchorEditMisfitMemory", session=TURN1, kind=kind)}


def turn_of(memory: list, nodes: dict | None = None, **inputs) -> dict:
    return {**(nodes or {}), "bad": turn(memory, LINES[1], **inputs)}


def native_of(change: Callable[[dict], None], nodes: dict | None = None) -> dict:
    """A turn by the host's samplers after turn 1, with a mistake in it."""
    graph = dict(nodes or {})
    native_turn(graph, "native", ["tiny", 0], TURN1, LINES[1])
    change(graph)
    return graph


def put(name: str, **inputs) -> Callable[[dict], None]:
    return lambda graph: graph[name]["inputs"].update(inputs)


def film(nodes: dict, **inputs) -> dict:
    wires = {"session": TURN1, "size": 96, **inputs}
    return {**nodes, "film": node("AnchorEditFilmstrip", **wires)}


def filed(name: str, loader: str = "AnchorEditLoadModel") -> dict:
    """Nodes that load a MODEL from a file in the host's folder."""
    if loader == "UNETLoader":
        return {"file": node(loader, unet_name=name, weight_dtype="default")}
    return {"file": node(loader, model_name=name, **LOAD_OPTIONS)}


def of_file(name: str, loader: str = "AnchorEditLoadModel") -> dict:
    return turn_of(TURN1, filed(name, loader), model=["file", 0])


NARROW = {"narrow": node("AnchorEditMisfitClip", clip=["tiny", 1])}
NARROW_TEXT = {**NARROW, "narrow_text": node("CLIPTextEncode", clip=["narrow", 0], text=LINES[1])}
EMPTY = {"empty": node("AnchorEditEmpty")}
ZERO = {"zero": node("ConditioningZeroOut", conditioning=["native_text", 0])}
BOTH = {"both": node("ConditioningCombine", conditioning_1=["native_text", 0], conditioning_2=["native_null", 0])}
BATCH = {"batch": node("ImageBatch", image1=["image", 0], image2=["image", 0])}
BLIND = {"policy": policy(anchor_frames=0, window=0)}


def vae(kind: str) -> dict:
    """A VAE that does not fit, and the session of turn 1 with it."""
    misfit = node("AnchorEditMisfitVAE", vae=["tiny", 2], kind=kind)
    return {"vae": misfit, "swapped": node("AnchorEditMisfitNetworks", session=TURN1, vae=["vae", 0])}


def start_of(nodes: dict, **inputs) -> dict:
    wires = {**NETWORKS, "image": ["image", 0], **inputs}
    return {**nodes, "begin": node("AnchorEditStart", **wires)}


def masked(size: tuple[int, int], box: tuple[int, int, int, int], value: float = 1.0) -> dict:
    graph: dict = {}
    mask(graph, "mask", size, box, value)
    return graph


def chain_of(nodes: dict, **inputs) -> dict:
    options = {"session": TURN1, "instructions": LINES[1], "seed": 7, "steps": 0, "cfg": 0.0, **inputs}
    return {**nodes, "bad": node("AnchorEditChain", **options)}


def variants_of(nodes: dict | None = None, **inputs) -> dict:
    options = {"instruction": LINES[1], "seed": 7, "steps": 0, "cfg": 0.0, "count": 2, **inputs}
    return {**(nodes or {}), "bad": node("AnchorEditVariations", session=TURN1, **options)}


def latent_of(width: int, length: int) -> dict:
    return {"video": node("EmptyHunyuanLatentVideo", width=width, height=width, length=length, batch_size=1)}


MASK = ["mask", 0]
LARGE, BLACK, WHITE = (
    masked((256, 128), (10, 10, 20, 20)),
    masked((128, 128), (0, 0, 9, 9), 0.0),
    masked((128, 128), (0, 0, 128, 128)),
)
TWO = BATCH | {"two": node("ImageToMask", image=["batch", 0], channel="red")}

MISTAKES = {
    # a session that does not fit
    "turn, channels": Mistake(turn_of(["bent", 0], bent("channels")), "bad", OWN),
    "turn, size": Mistake(turn_of(["bent", 0], bent("size")), "bad", OWN),
    "turn, odd size": Mistake(turn_of(["bent", 0], bent("odd size")), "bad", OWN),
    "turn, text width": Mistake(turn_of(["bent", 0], bent("text width")), "bad", "Use the model and text encoder"),
    "apply, channels": Mistake(
        native_of(put("native_apply", session=["bent", 0]), bent("channels")), "native_apply", OWN
    ),
    "apply, odd size": Mistake(
        native_of(put("native_apply", session=["bent", 0]), bent("odd size")), "native_apply", "Start the session with"
    ),
    "apply, text width": Mistake(
        native_of(put("native_apply", session=["bent", 0]), bent("text width")),
        "native_apply",
        "Use the model and text",
    ),
    "commit, channels": Mistake(native_of(put("native", session=["bent", 0]), bent("channels")), "native", OWN),
    "commit, size": Mistake(
        native_of(put("native", session=["bent", 0]), bent("size")), "native", "Use the model and size"
    ),
    "commit, text width": Mistake(
        native_of(put("native", session=["bent", 0]), bent("text width")), "native", "Use the model and text encoder"
    ),
    "filmstrip, channels": Mistake(film(bent("channels"), session=["bent", 0]), "film", OWN, wire="image"),
    "filmstrip, size": Mistake(film(bent("size"), session=["bent", 0]), "film", OWN, wire="image"),
    # a CLIP of another width
    "turn, CLIP": Mistake(turn_of(TURN1, NARROW, clip=["narrow", 0]), "bad", "Load the text encoder that belongs"),
    "start, CLIP": Mistake(start_of(NARROW, clip=["narrow", 0]), "begin", "Load the text encoder that belongs"),
    "apply, CLIP": Mistake(
        native_of(put("native_apply", positive=["narrow_text", 0]), NARROW_TEXT),
        "native_apply",
        "Load the text encoder",
    ),
    "commit, CLIP": Mistake(
        native_of(put("native", positive=["narrow_text", 0]), NARROW_TEXT), "native", "Load the text encoder"
    ),
    "turn, no CLIP": Mistake(turn_of(TURN1, EMPTY, clip=["empty", 0]), "bad", "Load the text encoder from a file"),
    # a VAE of another kind, or with other latents
    "start, SD1 VAE": Mistake(start_of(vae("SD1"), vae=["vae", 0]), "begin", "Load Wan 2.1's"),
    "turn, SD1 VAE": Mistake(turn_of(["swapped", 0], vae("SD1")), "bad", "Load Wan 2.1's"),
    "filmstrip, SD1 VAE": Mistake(film(vae("SD1"), session=["swapped", 0]), "film", "Load Wan 2.1's", wire="image"),
    "turn, another VAE": Mistake(turn_of(["swapped", 0], vae("another")), "bad", OWN),
    "filmstrip, another VAE": Mistake(film(vae("another"), session=["swapped", 0]), "film", OWN, wire="image"),
    # a MODEL of another kind, as the host's own loader gives it
    "turn, 36 channels": Mistake(of_file("wide.safetensors", "UNETLoader"), "bad", WAN),
    "turn, image-to-video": Mistake(of_file("i2v.safetensors", "UNETLoader"), "bad", WAN),
    "apply, 36 channels": Mistake(
        native_of(put("native_apply", model=["file", 0]), filed("wide.safetensors", "UNETLoader")), "native_apply", WAN
    ),
    "commit, 36 channels": Mistake(
        native_of(put("native", model=["file", 0]), filed("wide.safetensors", "UNETLoader")), "native", WAN
    ),
    # files
    "file, 36 channels": Mistake(of_file("wide.safetensors"), "file", WAN),
    "file, image-to-video": Mistake(of_file("i2v.safetensors"), "file", "Give Wan 2.1 text-to-video"),
    "file, text width": Mistake(of_file("narrow.safetensors"), "file", "Choose a Wan 2.1 text-to-video file"),
    "file, another model": Mistake(of_file("other.safetensors"), "file", "Give a complete checkpoint"),
    "file, weights missing": Mistake(of_file("lacking.safetensors"), "file", "Give a complete checkpoint"),
    "file, cut short": Mistake(of_file("short.safetensors"), "file", "Copy it again"),
    "file, empty": Mistake(of_file("empty.safetensors"), "file", "Download it again"),
    "file, header": Mistake(of_file("header.safetensors"), "file", "Copy it again"),
    "file, text": Mistake(of_file("text.safetensors"), "file", "Give a Wan 2.1 checkpoint"),
    "file, code": Mistake(of_file("code.pt"), "file", "Get it as .safetensors"),
    # images, latents, texts, numbers
    "image batch": Mistake(start_of(BATCH, image=["batch", 0]), "begin", "Choose one image"),
    "latent of a video": Mistake(
        native_of(put("native_sample", latent_image=["video", 0]), latent_of(128, 5)),
        "native_sample",
        "Give one image",
    ),
    "latent of another size": Mistake(
        native_of(put("native_sample", latent_image=["video", 0]), latent_of(256, 1)),
        "native_sample",
        "Use the LATENT of Apply Memory",
    ),
    "commit, video": Mistake(
        native_of(put("native", latent=["video", 0]), latent_of(128, 5)), "native", "Give one image's"
    ),
    "chain of blank lines": Mistake(chain_of({}, instructions=" \n\n"), "bad", "Write one per line"),
    "apply, no text": Mistake(
        native_of(put("native_apply", positive=["empty", 1]), EMPTY), "native_apply", "Connect one CLIP Text Encode"
    ),
    "commit, no text": Mistake(
        native_of(put("native", positive=["empty", 1]), EMPTY), "native", "Connect one CLIP Text Encode"
    ),
    "apply, zeros": Mistake(
        native_of(put("native_apply", positive=["zero", 0]), ZERO), "native_apply", "Connect a CLIP Text Encode"
    ),
    "apply, two texts": Mistake(
        native_of(put("native_apply", positive=["both", 0]), BOTH), "native_apply", "Connect one CLIP Text Encode"
    ),
    "nothing to see": Mistake(start_of(BLIND, policy=["policy", 0]), "policy", "Set one of them"),
    # masks and candidates
    "turn, mask of another size": Mistake(turn_of(TURN1, LARGE, mask=MASK), "bad", "Draw the mask at the image's size"),
    "turn, black mask": Mistake(turn_of(TURN1, BLACK, mask=MASK), "bad", "Paint white where the edit may change"),
    "turn, empty mask": Mistake(turn_of(TURN1, mask=["image", 1]), "bad", "Paint a mask over the image in Load Image"),
    "turn, two masks": Mistake(turn_of(TURN1, TWO, mask=["two", 0]), "bad", "Give one mask"),
    "chain, black mask": Mistake(chain_of(BLACK, mask=MASK), "bad", "Paint white where the edit may change"),
    "apply, mask of another size": Mistake(
        native_of(put("native_apply", mask=MASK), LARGE), "native_apply", "Draw the mask at the image's size"
    ),
    "commit, empty mask": Mistake(
        native_of(put("native", mask=["image", 1])), "native", "Paint a mask over the image in Load Image"
    ),
    "commit, masked latent of another size": Mistake(
        native_of(put("native", latent=["video", 0], mask=MASK), {**WHITE, **latent_of(256, 1)}),
        "native",
        "Use the model and size",
    ),
    "variants, black mask": Mistake(
        variants_of(BLACK, mask=MASK), "bad", "Paint white where the edit may change", wire="image", slot=1
    ),
    "pick": Mistake(
        {**variants_of(), "pick": node("AnchorEditPick", variations=["bad", 0], number=3)}, "pick", "Choose 1 to 2"
    ),
    "rewind": Mistake({"back": node("AnchorEditRewind", session=TURN1, turn=9)}, "back", "Choose 0 to 1"),
}


@pytest.fixture(scope="module")
def files(host) -> Path:
    """Files of all bad kinds, in the host's folder for diffusion models."""
    folder = host.folder / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    whole = load_file(TINY / "transformer" / "model.safetensors")
    wide = whole | {"patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2)}
    save_file(wide, folder / "wide.safetensors")
    save_file(wide | {"img_emb.proj.0.bias": torch.zeros(1280)}, folder / "i2v.safetensors")
    save_file(whole | {"text_embedding.0.weight": torch.zeros(256, 64)}, folder / "narrow.safetensors")
    save_file({"encoder.weight": torch.zeros(4, 4)}, folder / "other.safetensors")
    save_file({name: whole[name] for name in whole if ".5.ffn" not in name}, folder / "lacking.safetensors")
    data = (TINY / "transformer" / "model.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "header.safetensors").write_bytes(data[:8] + b"{" + b"?" * 4000)
    (folder / "text.safetensors").write_text("<html>404: not found, and some more words</html>")
    torch.save({"model": print}, folder / "code.pt")
    return folder


def sound_graph(seed: int = 7) -> dict:
    """Turn 1, and beside it a branch of its own; both are written to files."""
    graph = base_graph()
    graph["turn1"] = turn(START, LINES[0], seed=seed)
    graph["beside"] = turn(START, LINES[2], seed=seed)
    graph["probe1"] = probe("sound", session=TURN1, image=["turn1", 1])
    graph["probe_beside"] = probe("beside", session=["beside", 0])
    return graph


def with_mistake(graph: dict, mistake: Mistake) -> dict:
    last = list(mistake.nodes)[-1]
    return graph | mistake.nodes | {"wanted": probe("wanted", **{mistake.wire: [last, mistake.slot]})}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_is_on_its_node_and_begins_with_the_remedy(host, image_file, files, name):
    mistake, sound = MISTAKES[name], sound_graph()
    run = host.run(with_mistake(sound, mistake))
    assert not run.refused, run.refused
    assert run.error is not None, "it was taken"
    print(run.error["exception_message"].strip())
    assert run.error["node_id"] == mistake.where
    assert run.error["exception_message"].startswith(mistake.words)
    assert "Traceback" not in run.error["exception_message"]
    done = set(run.ran) - {mistake.where}
    assert not done & set(succeed(host, sound).ran), "what was done before the mistake is done again"


def test_a_file_that_is_not_there_is_refused_before_anything_runs(host, image_file):
    sound = sound_graph(seed=21)
    for name in ("nowhere.safetensors", "../checkpoints/nowhere.safetensors"):
        run = host.run(sound | of_file(name) | {"wanted": probe("wanted", session=["bad", 0])})
        (error,) = run.refused["file"]["errors"]
        print(error["details"])
        assert error["details"].startswith("model_name - Put it into models/diffusion_models")
        assert run.error is None  # the other outputs are made all the same
    assert read(host, "sound")["latents"].shape[0] == 2


@pytest.mark.parametrize("name", ["turn, channels", "file, code", "latent of another size", "image batch"])
def test_the_rest_of_the_graph_is_made_before_or_after_the_mistake_is_mended(host, image_file, files, name):
    mistake, sound = MISTAKES[name], sound_graph(seed=100 + list(MISTAKES).index(name))
    outputs = [host.folder / "output" / f"{probe}.safetensors" for probe in ("sound", "beside")]
    for path in outputs:
        path.unlink(missing_ok=True)
    broken = host.run(with_mistake(sound, mistake))
    assert broken.error["node_id"] == mistake.where
    mended = succeed(host, sound)
    ran = broken.ran + mended.ran
    assert [ran.count(name) for name in ("turn1", "beside", "probe1", "probe_beside")] == [1, 1, 1, 1]
    assert all(path.is_file() for path in outputs)


def test_an_empty_instruction_is_a_null_edit_and_says_so(host, image_file):
    graph = base_graph()
    graph["null"] = turn(START, "  ", seed=22)
    graph["asked"] = turn(START, LINES[0], seed=22)
    graph["lines"] = node("AnchorEditChain", session=START, instructions="\n a \n\n", seed=22, steps=0, cfg=0.0)
    for name in ("null", "asked", "lines"):
        graph[f"probe_{name}"] = probe(name, session=[name, 0], image=[name, 1])
    run = succeed(host, graph)
    assert "generated again as it is" in dict(run.texts)["null"]
    assert "asked" not in dict(run.texts)
    assert len(read(host, "lines")["latents"]) == 2
    assert read(host, "null")["text.1"].equal(read(host, "null")["text.0"])
