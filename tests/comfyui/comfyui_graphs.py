"""Graphs in the API's format, as the tests queue them: node name -> class and inputs, a link being [name, output]."""

import json

from safetensors.torch import load_file

LINES = ["make it blue", "add a crown", "change the background to pink"]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")
MUTED = 2  # the browser's mode of a node that does not run
NETWORKS = {"model": ["tiny", 0], "clip": ["tiny", 1], "vae": ["tiny", 2]}

# Load Model as it comes, all from the file
LOAD_OPTIONS = {
    "steps": 0,
    "sampler": "from file",
    "shift": 0.0,
    "cfg": 0.0,
    "anchor_prompt": "from file",
    "slot_mode": "from file",
    "temporal_stride": 0,
    "resolution": 0,
    "max_turns": 0,
}


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def base_graph() -> dict:
    """The bundled model and a session with the test's image as its anchor."""
    return {
        "tiny": node("AnchorEditLoadTiny"),
        "image": node("LoadImage", image="drawing.png"),
        "start": node("AnchorEditStart", **NETWORKS, image=["image", 0]),
    }


def turn(memory: list, instruction: str, **inputs) -> dict:
    options = {"seed": 7, "steps": 0, "cfg": 0.0, **inputs}
    return node("AnchorEditTurn", session=memory, instruction=instruction, **options)


def mask(graph: dict, name: str, size: tuple[int, int], box: tuple[int, int, int, int], value: float = 1.0) -> list:
    """Adds a MASK of `size` (width, height) with a filled rectangle `box` (x, y, width, height); the wire to it."""
    x, y, width, height = box
    graph[f"{name}_ground"] = node("SolidMask", value=0.0, width=size[0], height=size[1])
    graph[f"{name}_paint"] = node("SolidMask", value=value, width=width, height=height)
    ground, paint = [f"{name}_ground", 0], [f"{name}_paint", 0]
    graph[name] = node("MaskComposite", destination=ground, source=paint, x=x, y=y, operation="add")
    return [name, 0]


def turns_graph(lines: list[str], name: str, **inputs) -> dict:
    """Start -> turn1 -> turn2 ... -> a file."""
    graph, memory = base_graph(), ["start", 0]
    for number, line in enumerate(lines, 1):
        graph[f"turn{number}"] = turn(memory, line, **inputs)
        memory = [f"turn{number}", 0]
    graph["probe"] = probe(name, session=memory, image=[memory[0], 1])
    return graph


def chain_graph(lines: list[str], name: str, **inputs) -> dict:
    """Start -> Chain -> a file."""
    graph = base_graph()
    options = {"seed": 7, "steps": 0, "cfg": 0.0, **inputs}
    graph["chain"] = node("AnchorEditChain", session=["start", 0], instructions="\n".join(lines), **options)
    graph["probe"] = probe(name, session=["chain", 0], image=["chain", 1])
    return graph


def native_turn(graph: dict, name: str, model: list, memory: list, instruction: str, cfg: float = 1.0) -> None:
    """Adds a turn by the host's own sampling nodes: its session is [name, 0], its latent [f"{name}_sample", 0]."""
    graph[f"{name}_text"] = node("CLIPTextEncode", clip=["tiny", 1], text=instruction)
    graph[f"{name}_null"] = node("CLIPTextEncode", clip=["tiny", 1], text="")
    apply, text, null = f"{name}_apply", [f"{name}_text", 0], [f"{name}_null", 0]
    graph[apply] = node("AnchorEditApplyMemory", model=model, session=memory, positive=text, seed=7)
    graph[f"{name}_guider"] = node("CFGGuider", model=[apply, 0], positive=text, negative=null, cfg=cfg)
    graph[f"{name}_sample"] = node(
        "SamplerCustomAdvanced",
        noise=[apply, 2],
        guider=[f"{name}_guider", 0],
        sampler=[apply, 3],
        sigmas=[apply, 4],
        latent_image=[apply, 1],
    )
    graph[name] = node(
        "AnchorEditCommitTurn",
        model=[apply, 0],
        session=memory,
        latent=[f"{name}_sample", 0],
        positive=text,
        instruction=instruction,
    )


def probe(name: str, **wires) -> dict:
    return node("AnchorEditProbe", name=name, **wires)


def read(host, name: str) -> dict:
    """What a probe wrote."""
    return load_file(host.folder / "output" / f"{name}.safetensors")


def read_json(host, name: str) -> dict:
    """The figures that a probe wrote."""
    return json.loads((host.folder / "output" / f"{name}.json").read_text())


def policy(**options) -> dict:
    """A Memory Policy as it comes, with other `options`."""
    widgets = {"anchor_frames": 1, "window": 4, "history": "stream", "kv_device": "auto", "kv_dtype": "auto"}
    return node("AnchorEditMemoryPolicy", **{**widgets, **options})


def succeed(host, graph: dict):
    run = host.run(graph)
    assert not run.refused, run.refused
    assert run.error is None, f"{run.error}\n{host.log_text()[-3000:]}"
    return run


def api_graph(workflow: dict, info: dict) -> dict:
    """The browser's format -> the API's, by what the host says of its nodes (/object_info)."""
    sources = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    graph = {}
    for entry in workflow["nodes"]:
        if entry["type"] in NOTES or entry["mode"] == MUTED:
            continue
        inputs, values = {}, list(entry["widgets_values"])
        known = info[entry["type"]]["input"]
        for name, (kind, *options) in {**known.get("required", {}), **known.get("optional", {})}.items():
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = values.pop(0)
                if options and (options[0].get("control_after_generate") or options[0].get("image_upload")):
                    values.pop(0)  # "fixed", "increment" ..., "image": the browser's own
        assert not values, f"node {entry['id']} has values left over: {values}"
        inputs |= {put["name"]: sources[put["link"]] for put in entry["inputs"] if put["link"] is not None}
        graph[str(entry["id"])] = node(entry["type"], **inputs)
    return graph
