"""Sessions on the host's own image editors: tiny random models of each family that the host has."""

import numpy as np
import pytest
import torch
from comfyui_graphs import mask, node, policy, probe, read, succeed, turn
from PIL import Image

LINES = ["make it blue", "add a crown", "remove the hat", "make it night"]
SIZE = (96, 80)  # of the image; tiny models are fast at the megapixel that it is edited at only if it is small
FAMILIES = ("qwen", "qwen2511", "kontext", "omnigen2", "klein", "flux2")


@pytest.fixture(scope="module")
def source(host):
    image = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    image.paste((200, 40, 40), (20, 20, 60, 50))
    image.save(host.folder / "input" / "source.png")


@pytest.fixture(params=FAMILIES)
def family(request, host) -> str:
    known = host.get("/object_info/AnchorEditTinyEditor")["AnchorEditTinyEditor"]["input"]["required"]["family"][0]
    if request.param not in known:
        pytest.skip("this host does not know the family")
    return request.param


def session_graph(family: str, lines: list[str], name: str, seen: dict | None = None, **inputs) -> dict:
    """Start -> turn1 -> turn2 ... -> a file; `seen` are options of Memory Policy."""
    networks = {"model": ["editor", 0], "clip": ["editor", 1], "vae": ["editor", 2]}
    graph = {
        "editor": node("AnchorEditTinyEditor", family=family),
        "image": node("LoadImage", image="source.png"),
        "policy": policy(**{"anchor_frames": 1, "window": 1, **(seen or {})}),
        "start": node("AnchorEditStart", **networks, image=["image", 0], policy=["policy", 0]),
    }
    session = ["start", 0]
    for number, line in enumerate(lines, 1):
        graph[f"turn{number}"] = turn(session, line, **{"steps": 2, **inputs})
        session = [f"turn{number}", 0]
    graph["probe"] = probe(name, session=session, image=[session[0], 1])
    return graph


def turns_of(run) -> list[str]:
    return [name for name in run.ran if name.startswith("turn")]


def latents(host, graph: dict, name: str) -> torch.Tensor:
    graph["probe"]["inputs"]["name"] = name
    succeed(host, graph)
    return read(host, name)["latents"]


def test_turns_see_the_anchor_and_the_newest_image_and_nothing_else(host, source, family):
    graph = session_graph(family, LINES[:3], "plain")
    plain = latents(host, graph, "plain")
    assert read(host, "plain")["image"].shape == (1, SIZE[1], SIZE[0], 3) and plain.isfinite().all()
    assert min((one - other).abs().max() for one, other in zip(plain, plain[1:])) > 1e-3

    # another last instruction: that turn alone runs
    graph["turn3"]["inputs"]["instruction"] = LINES[3]
    graph["probe"]["inputs"]["name"] = "last"
    assert turns_of(succeed(host, graph)) == ["turn3"]
    last = read(host, "last")["latents"]
    assert torch.equal(last[:3], plain[:3]) and not torch.equal(last[3], plain[3])
    graph["turn3"]["inputs"]["instruction"] = LINES[2]

    # what turn 3 sees: the anchor and turn 2, not turn 1
    newest = latents(host, session_graph(family, LINES[:3], "newest", {"anchor_frames": 0}), "newest")
    assert torch.equal(newest[1], plain[1]) and not torch.equal(newest[2], plain[2]), "the anchor makes no difference"


def test_the_same_seed_gives_the_same_bits_and_variations_agree_with_turns(host, source, family):
    graph = session_graph(family, LINES[:1], "one", seed=3)
    one = latents(host, graph, "one")
    graph["start2"] = graph["start"] | {"inputs": {**graph["start"]["inputs"]}}
    graph["again"] = turn(["start2", 0], LINES[0], steps=2, seed=3)
    graph["probe2"] = probe("again", session=["again", 0])
    graph["many"] = node(
        "AnchorEditVariations", session=["start", 0], instruction=LINES[0], seed=3, steps=2, cfg=0.0, count=2
    )
    graph["pick"] = node("AnchorEditPick", variations=["many", 0], number=1)
    graph["probe3"] = probe("first", session=["pick", 0])
    graph["other"] = node("AnchorEditPick", variations=["many", 0], number=2)
    graph["probe4"] = probe("second", session=["other", 0])
    succeed(host, graph)
    assert torch.equal(read(host, "again")["latents"], one)
    first, second = read(host, "first")["latents"], read(host, "second")["latents"]
    assert (first - one).abs().max() <= 1e-5 * one.abs().max() and not torch.equal(first[1], second[1])


def test_pixels_outside_a_mask_keep_their_bits(host, source, family):
    graph = session_graph(family, LINES[:3], "masked")
    wire = mask(graph, "mask", SIZE, (24, 24, 32, 24))
    for number in (1, 2, 3):
        graph[f"turn{number}"]["inputs"]["mask"] = wire
    succeed(host, graph)
    edited = read(host, "masked")["image"][0]
    with Image.open(host.folder / "input" / "source.png") as image:
        original = torch.from_numpy(np.array(image.convert("RGB"))) / 255
    outside = torch.ones(SIZE[1], SIZE[0], dtype=torch.bool)
    outside[24:48, 24:56] = False
    assert torch.equal(edited[outside], original[outside]) and not torch.equal(edited, original)


def test_a_session_goes_on_from_its_file(host, source, family):
    graph = session_graph(family, LINES[:2], "whole")
    whole = latents(host, graph, "whole")
    graph["save"] = node(
        "AnchorEditSaveSession", session=["turn1", 0], filename_prefix=f"native_{family}", existing="overwrite"
    )
    succeed(host, graph)
    networks = {"model": ["editor", 0], "clip": ["editor", 1], "vae": ["editor", 2]}
    loaded = {
        "editor": node("AnchorEditTinyEditor", family=family),
        "load": node("AnchorEditLoadSession", file=f"native_{family}.safetensors [output]", **networks),
        "turn2": turn(["load", 0], LINES[1], steps=2),
    }
    loaded["probe"] = probe("loaded", session=["turn2", 0])
    succeed(host, loaded)
    assert torch.equal(read(host, "loaded")["latents"], whole)


def test_wan_refuses_turns_without_prompt_embeddings(host, source):
    graph = session_graph("qwen", LINES[:1], "mixed")
    graph["tiny"] = node("AnchorEditLoadTiny")
    graph["wan"] = turn(["turn1", 0], LINES[1], model=["tiny", 0], clip=["tiny", 1])
    graph["probe"] = probe("mixed", session=["wan", 0])
    run = host.run(graph)
    assert run.error is not None and run.error["node_id"] == "wan"
    assert run.error["exception_message"].startswith("Continue with that editor")


SQUARE = (128, 128)  # a size that neither the stock graphs nor ours rescale


def stock_conditions(graph: dict, family: str) -> None:
    """Add "positive" and "negative" (and "middle") as the host's templates make them, of the image and its latent."""
    graph["encoded"] = node("VAEEncode", pixels=["image", 0], vae=["editor", 2])

    def encode(name: str, text: str, references: bool = True) -> None:
        if family.startswith("qwen"):
            inputs = {"clip": ["editor", 1], "prompt": text, "image1": ["image", 0]}
            graph[name] = node("TextEncodeQwenImageEditPlus", **inputs)
        else:
            graph[name] = node("CLIPTextEncode", clip=["editor", 1], text=text)
        wire = [name, 0]
        if references:
            graph[f"{name}_reference"] = node("ReferenceLatent", conditioning=wire, latent=["encoded", 0])
            wire = [f"{name}_reference", 0]
        if family in GUIDANCE:
            graph[f"{name}_guidance"] = node("FluxGuidance", conditioning=wire, guidance=GUIDANCE[family])
            wire = [f"{name}_guidance", 0]
        if family == "qwen2511":
            method = {"conditioning": wire, "reference_latents_method": "index_timestep_zero"}
            graph[f"{name}_method"] = node("FluxKontextMultiReferenceLatentMethod", **method)
            wire = [f"{name}_method", 0]
        graph[f"{name}_out"] = wire

    encode("positive", LINES[0])
    if family in CFG:
        encode("negative", "", references=family != "omnigen2")
    if family == "omnigen2":
        encode("middle", "")


GUIDANCE = {"kontext": 2.5, "flux2": 4.0}
CFG = {"qwen": 4.0, "qwen2511": 4.0, "omnigen2": 5.0}


def guider(family: str, model: list, conditions: dict[str, list]) -> dict:
    if family == "omnigen2":
        wires = {"cond1": conditions["positive"], "cond2": conditions["middle"], "negative": conditions["negative"]}
        return node("DualCFGGuider", model=model, **wires, cfg_conds=5.0, cfg_cond2_negative=2.0, style="regular")
    if family in CFG:
        wires = {name: conditions[name] for name in ("positive", "negative")}
        return node("CFGGuider", model=model, **wires, cfg=CFG[family])
    return node("BasicGuider", model=model, conditioning=conditions["positive"])


def add_sampling(graph: dict, family: str, name: str, model: list, conditions: dict[str, list]) -> None:
    """Sample by the host's nodes with the noise of the turn, and commit it: the session is [name, 0]."""
    if family in ("klein", "flux2"):
        sigmas = node("Flux2Scheduler", steps=2, width=SQUARE[0], height=SQUARE[1])
    else:
        sigmas = node("BasicScheduler", model=["editor", 0], scheduler="simple", steps=2, denoise=1.0)
    graph["sigmas"] = sigmas
    graph["sampler"] = node("KSamplerSelect", sampler_name="euler")
    graph[f"{name}_guider"] = guider(family, model, conditions)
    graph[f"{name}_sample"] = node(
        "SamplerCustomAdvanced",
        noise=["apply", 2],
        guider=[f"{name}_guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["apply", 1],
    )
    committed = {"session": ["start", 0], "latent": [f"{name}_sample", 0], "positive": conditions["positive"]}
    graph[name] = node("AnchorEditCommitTurn", **committed, instruction=LINES[0])
    graph[f"{name}_probe"] = probe(name, session=[name, 0])


@pytest.fixture(scope="module")
def square(host, source):
    with Image.open(host.folder / "input" / "source.png") as image:
        image.resize(SQUARE).save(host.folder / "input" / "square.png")


def test_one_turn_equals_the_stock_graph_and_apply_memory(host, square, family):
    graph = session_graph(family, LINES[:1], "turn", seed=5)
    graph["image"]["inputs"]["image"] = "square.png"
    stock_conditions(graph, family)
    conditions = {
        name: graph.pop(f"{name}_out") for name in ("positive", "negative", "middle") if f"{name}_out" in graph
    }
    graph["apply"] = node("AnchorEditApplyMemory", session=["start", 0], positive=["positive", 0], seed=5)
    add_sampling(graph, family, "stock", ["editor", 0], conditions)
    add_sampling(graph, family, "applied", ["apply", 0], {name: [name, 0] for name in conditions})
    succeed(host, graph)
    ours = read(host, "turn")["latents"]
    for name in ("stock", "applied"):
        apart = (read(host, name)["latents"] - ours).abs().max().item()
        largest = ours[1].abs().max().item()
        print(f"difference to {name}: {apart:.1e} of latents up to {largest:.1f}")
        # of the latents' own size: the dual guidance of OmniGen2 makes them, and what float32 rounds off, larger
        assert apart <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("size", [(1023, 769), (1500, 1000), (4000, 500), (512, 512)])
@pytest.mark.parametrize("echoing", ["kontext", "klein"])
def test_twenty_turns_of_a_model_that_changes_nothing_change_nothing(host, echoing, size):
    """No zoom, no shift, no creep, whatever the size: twenty images are the first one to the last bit of a PNG."""
    known = host.get("/object_info/AnchorEditTinyEditor")["AnchorEditTinyEditor"]["input"]["required"]["family"][0]
    if echoing not in known:
        pytest.skip("this host does not know the family")
    name = f"echo_{size[0]}"
    image = Image.effect_noise((size[0] // 8, size[1] // 8), 60).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    image.save(host.folder / "input" / f"{name}.png")
    graph = session_graph(echoing, [""] * 20, name)
    graph["image"]["inputs"]["image"] = f"{name}.png"
    graph["editor"]["inputs"]["resolution"] = 256
    graph["echo"] = node("AnchorEditEcho", model=["editor", 0])
    graph["start"]["inputs"]["model"] = ["echo", 0]
    graph["first"] = probe(f"{name}_first", image=["turn1", 1])
    succeed(host, graph)
    made, last, first = read(host, name)["latents"], read(host, name)["image"], read(host, f"{name}_first")["image"]
    print(f"{size}: largest change of a latent {(made[2:] - made[1]).abs().max():.1e}")
    assert (made[2:] - made[1]).abs().max() <= 1e-5
    assert last.shape == (1, size[1], size[0], 3)
    assert torch.equal((255 * last).round(), (255 * first).round())
