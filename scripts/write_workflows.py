"""Writes the files in workflows/ and their images by what a running host knows of the nodes: `make workflows`.

When a node gets an input, this gives it its default in every workflow; what a workflow is about is said below. The
oldest host should write them, newer ones read its files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from thumbnails import thumbnail

PACK = Path(__file__).resolve().parents[1]
WORKFLOWS = PACK / "workflows"
sys.path.insert(0, str(PACK / "tests" / "comfyui"))

from comfyui_graphs import MUTED, WIDGETS, api_graph, node, succeed
from comfyui_server import Server, server

GREY, BLUE, PINK, GREEN = "#888", "#5a9bc4", "#c65fc0", "#4fae7a"
GROUP_MARGIN, GROUP_TITLE, NODE_TITLE = 20, 50, 30  # pixels of the canvas

COMFY_ORG = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
TRANSFORMER = "wan2.1_t2v_1.3B_fp16.safetensors"
LARGE = "wan2.1_t2v_14B_fp8_scaled.safetensors"

FIRST_EDIT = """\
## First edit

The small model that comes with AnchorEdit edits its own sample image: no download, runs on a CPU.

1. **Run**. The filmstrip shows the source and both turns.
2. Change the instruction of **Turn 2** and run again: only that turn is computed.
3. Press **Next turn** on Turn 2, write what to change, run. The filmstrip goes along.
4. Drag over the large image of the filmstrip: before on the left, after on the right.

Look at what was *not* asked for: it should stay as it is.

The small model knows simple drawings of 128x128 pixels and instructions such as *change the background to \
blue*, *write OK on the sign*, *make it black and white*, \
*bring the colours back*, *make it night*. For photographs see **Wan 2.1 set-up**.
"""
TEN_TURNS = """\
## Ten turns

One instruction per line; **Chain** makes one turn of each.

1. **Run**. The filmstrip shows the source and all turns.
2. Change a line and run again: that line and those below it are computed, the ones above are not.

The **Memory Policy** lets every turn see the source image (the anchor) and the last two turns, so the tenth turn \
costs what the third does. Set *anchor_frames* to 0 and compare the last images with the source.
"""
BRANCHES = """\
## Branches

Two turns on the memory of **Turn 2** are two branches. They share turns 1 and 2, which are computed once, and they \
do not disturb each other.

1. **Run**. Each filmstrip shows one way through.
2. Change the instruction of one branch and run again: the other one is not computed.

To go back by number use **AnchorEdit Rewind**: a turn on the rewound memory is a branch too.
"""
MASKED_EDIT = """\
## Masked edit

Where the mask is black, every pixel stays as it was, bit by bit, at your image's own size; the edit fades in just \
inside the mask's edge.

1. **Run**. Both turns may only touch the sign.
2. Change *x*, *y*, *width* and *height* of the mask, or unplug it from a turn, and run again.

For your own image: *Load Image*, right click, **Open in MaskEditor**, paint, and wire its **MASK** to the turns. A \
mask has the size of the source image and may differ from turn to turn.
"""
VARIANTS = """\
## Variants

**Variants** makes several candidates of one turn at once; **Pick** says with which of them to go on.

1. **Run**, and look at the candidates.
2. Change *number* in **Pick** and run again: nothing is sampled but the turn after it.
3. None is right? Change the seed of Variants.

The first candidate is what a Turn with the same seed makes. A Turn with the seed that is written under another one \
makes that.
"""
NATIVE_SAMPLER = """\
## The host's own sampler

**Apply Memory** gives a MODEL that sees the session, and what *SamplerCustomAdvanced* needs for the next turn. \
**Commit Turn** adds what was sampled to the session.

1. Write the **Instruction** and run. The image is the one that the Turn node makes from the same seed.
2. Put your own guider, sigmas or model patches between Apply Memory and the sampler.

Put LoRA nodes *before* Apply Memory, so that the session is read with them too. For a second turn copy the blue \
group and wire its **memory** to the one that Commit Turn gives.
"""
SAVE_AND_GO_ON = """\
## Save and go on

1. **Run**. *Today* makes two turns and saves the session in `output/AnchorEdit/my_session.safetensors`.
2. *Another day*, also after a restart: right-click the pink group's title, *Set Group Nodes to Always*, and set the \
blue one to *Never*. Press **R**, so that **Load Session** knows the new file, and run: turn 3 goes on as if the \
session had never been away. What it sees of the session is read again first, which takes one pass of the model per \
image.
3. **Export Turns** saves a PNG of every turn. Drag one into ComfyUI: its workflow opens.

A loaded session is like any other: go back in it with **AnchorEdit Rewind**, make branches, save it again. With \
*keep* every save is a file with the next number.
"""
WAN_SETUP = """\
## {title}

For images of any kind. Needs three files:

| folder in `models/` | file |
|---|---|
| `diffusion_models` | {model}, **trained to edit** |
| `text_encoders` | `{text}` ([6.7 GB]({files}/text_encoders/{text})) |
| `vae` | `{vae}` ([254 MB]({files}/vae/{vae})) |

**Weights of these sizes that were trained to edit are not public yet.** When you have one, choose it in \
**Load Model**: .safetensors of any layout, or a published `model.pt`. The plain `{plain}` named there shows \
that the wiring works, but it makes a new image instead of an edit, and says so on the node.

{memory}

The results have exactly your image's size. **Start** says at which size it is worked on. LoRA: put \
*LoraLoaderModelOnly* behind Load Model. Stock *Load Diffusion Model* works too; for a GGUF file take *Unet Loader \
(GGUF)* of ComfyUI-GGUF and **Model Settings** behind it.
"""


@dataclass(frozen=True)
class Card:
    """A set-up for Wan 2.1: which file, how its memory is kept, and what that means at 1024x1024."""

    model: str
    plain: str
    memory: str
    policy: dict


CARDS = {
    "Wan 2.1 set-up": Card(
        "a Wan 2.1 text-to-video model, 1.3B or 14B",
        TRANSFORMER,
        "**Memory Policy** says what turns will cost with your model and image; the workflows for 12, 16 and 24 GB "
        "have it set.",
        {},
    ),
    "Wan 2.1 on 12 GB": Card(
        "Wan 2.1 1.3B, 2.8 GB",
        TRANSFORMER,
        "The model and 3.8 GB of keys and values (the source and four turns of 1024x1024) fit together. On 8 GB take "
        "`float8_e4m3fn` in **Memory Policy**, which halves them.",
        {},
    ),
    "Wan 2.1 on 16 GB": Card(
        "Wan 2.1 14B in fp8, 14 GB",
        LARGE,
        "The model alone fills the card, so keys and values are kept in main memory in 8 bits: 8.4 GB of it for the "
        "source and four turns of 1024x1024. Each layer's are on their way while the layer before computes.",
        {"kv_device": "cpu", "kv_dtype": "float8_e4m3fn"},
    ),
    "Wan 2.1 on 24 GB": Card(
        "Wan 2.1 14B in fp8, 14 GB",
        LARGE,
        "The model and 6.7 GB of keys and values in 8 bits (the source and three turns of 1024x1024) fit together. "
        "With a longer window they go to main memory by themselves.",
        {"window": 3, "kv_dtype": "float8_e4m3fn"},
    ),
}


@dataclass(frozen=True)
class Wire:
    node: int
    slot: int


@dataclass
class Sheet:
    """One workflow in the browser's format. `info` is what the host says of its nodes (/object_info)."""

    name: str
    info: dict
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    def add(self, kind: str, box: tuple, title: str = "", /, models: tuple = (), **inputs) -> Node:
        """Return a node at `box` (x, y, width, height); `inputs` are wires and values of widgets by name."""
        known = self.info[kind]
        number = len(self.nodes) + 1
        entry = {
            "id": number,
            "type": kind,
            "pos": list(box[:2]),
            "size": list(box[2:]),
            "flags": {},
            "order": number - 1,
        }
        entry |= {"mode": 0, "inputs": [], "outputs": [], "properties": {"Node name for S&R": kind}}
        entry["widgets_values"] = values = []
        for name, (socket, *rest) in {
            **known["input"].get("required", {}),
            **known["input"].get("optional", {}),
        }.items():
            options = rest[0] if rest else {}
            slot = {"name": name, "type": "COMBO" if isinstance(socket, list) else socket, "link": None}
            given = inputs.pop(name, None)
            if isinstance(given, Wire):
                slot["link"] = self._link(given, number, len(entry["inputs"]), slot["type"])
                given = None
            if slot["type"] in WIDGETS:
                slot["widget"] = {"name": name}
                choices = socket if isinstance(socket, list) else options.get("options", [])
                default = options.get("default", choices[0] if choices else "")
                values.append(default if given is None else given)
                values += ["fixed"] if options.get("control_after_generate") else []
                values += ["image"] if options.get("image_upload") else []
            entry["inputs"].append(slot)
        if inputs:
            raise ValueError(f"{kind} has no input {', '.join(inputs)}")
        entry["outputs"] = [{"name": n, "type": t, "links": []} for n, t in zip(known["output_name"], known["output"])]
        if models:
            entry["properties"]["models"] = [dict(zip(("name", "url", "directory"), model)) for model in models]
        if title:
            entry["title"] = title
        self.nodes.append(entry)
        return Node(entry)

    def note(self, text: str, box: tuple) -> None:
        number = len(self.nodes) + 1
        entry = {"id": number, "type": "MarkdownNote", "pos": list(box[:2]), "size": list(box[2:]), "flags": {}}
        entry |= {"order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
        self.nodes.append(entry | {"widgets_values": [text.strip()], "title": "Read me"})

    def group(self, title: str, color: str, *members: Node) -> None:
        """Return a frame around nodes."""
        boxes = [(*node.entry["pos"], *node.entry["size"]) for node in members]
        left, top = min(x for x, *_ in boxes) - GROUP_MARGIN, min(y for _, y, *_ in boxes) - NODE_TITLE - GROUP_TITLE
        right, bottom = max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)
        bounding = [left, top, right + GROUP_MARGIN - left, bottom + GROUP_MARGIN - top]
        group = {"id": len(self.groups) + 1, "title": title, "bounding": bounding, "color": color}
        self.groups.append(group | {"font_size": 24, "flags": {}})

    def mute(self, *members: Node) -> None:
        """Mute nodes, which do not run until the artist says so."""
        for member in members:
            member.entry["mode"] = MUTED

    def json(self) -> dict:
        sheet = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(self.nodes)}
        sheet |= {"last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": self.groups}
        return sheet | {"config": {}, "extra": {}, "version": 0.4}

    def _link(self, wire: Wire, target: int, slot: int, kind: str) -> int:
        number = len(self.links) + 1
        self.links.append([number, wire.node, wire.slot, target, slot, kind])
        self.nodes[wire.node - 1]["outputs"][wire.slot]["links"].append(number)
        return number


@dataclass(frozen=True)
class Node:
    entry: dict

    def __getitem__(self, slot: int) -> Wire:
        return Wire(self.entry["id"], slot)


def bundled(sheet: Sheet, **start) -> tuple[Node, Node, dict]:
    """Return the bundled model and a session on its image: Load, Start, and the wires that every turn takes."""
    tiny = sheet.add("AnchorEditLoadTiny", (0, 80, 300, 110))
    wires = {"model": tiny[0], "clip": tiny[1], "vae": tiny[2]}
    return tiny, sheet.add("AnchorEditStart", (360, 80, 300, 190), **wires, image=tiny[3], **start), wires


def turn(sheet: Sheet, box: tuple, title: str, instruction: str, memory: Wire, wires: dict) -> Node:
    """Return a turn, whose box should leave room for the preview that appears in it."""
    return sheet.add("AnchorEditTurn", box, title, **wires, session=memory, instruction=instruction, seed=7)


def first_edit(sheet: Sheet) -> None:
    sheet.note(FIRST_EDIT, (0, 400, 660, 220))
    tiny, start, wires = bundled(sheet)
    one = turn(sheet, (760, 80, 340, 540), "Turn 1", "change the background to blue", start[0], wires)
    two = turn(sheet, (1140, 80, 340, 540), "Turn 2", "write OK on the sign", one[0], wires)
    strip = sheet.add("AnchorEditFilmstrip", (760, 740, 720, 560), session=two[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Edits", BLUE, one, two)
    sheet.group("3  Look", GREEN, strip)


def ten_turns(sheet: Sheet) -> None:
    lines = ["change the background to blue", "write OK on the sign", "make it black and white"]
    lines += ["bring the colours back", "change the light to sunset", "draw a heart on the sign"]
    lines += ["change the light to day", "change the background to yellow", "clear the sign", "undo the last change"]
    sheet.note(TEN_TURNS, (0, 560, 660, 200))
    policy = sheet.add("AnchorEditMemoryPolicy", (0, 270, 300, 190), anchor_frames=1, window=2)
    tiny, start, wires = bundled(sheet, policy=policy[0])
    chain = sheet.add(
        "AnchorEditChain", (760, 80, 900, 480), **wires, session=start[0], instructions="\n".join(lines), seed=7
    )
    strip = sheet.add("AnchorEditFilmstrip", (760, 680, 900, 600), session=chain[0], size=160)
    sheet.group("1  An image, and what turns may see", GREY, policy, tiny, start)
    sheet.group("2  Edits", BLUE, chain)
    sheet.group("3  Look", GREEN, strip)


def branches(sheet: Sheet) -> None:
    sheet.note(BRANCHES, (0, 1040, 660, 190))
    tiny, start, wires = bundled(sheet)
    one = turn(sheet, (0, 400, 310, 540), "Turn 1", "change the background to blue", start[0], wires)
    two = turn(sheet, (350, 400, 310, 540), "Turn 2", "write OK on the sign", one[0], wires)
    ways = [
        ("One way", PINK, 80, "change the light to sunset"),
        ("The other way", GREEN, 760, "make it black and white"),
    ]
    for title, color, y, instruction in ways:
        three = turn(sheet, (760, y, 310, 560), f"Turn 3: {title.lower()}", instruction, two[0], wires)
        strip = sheet.add("AnchorEditFilmstrip", (1110, y, 760, 560), session=three[0])
        sheet.group(title, color, three, strip)
    sheet.group("An image", GREY, tiny, start)
    sheet.group("What both ways share", BLUE, one, two)


def masked_edit(sheet: Sheet) -> None:
    sheet.note(MASKED_EDIT, (0, 400, 660, 250))
    tiny, start, wires = bundled(sheet)
    ground = sheet.add("SolidMask", (0, 760, 200, 110), "Black", value=0.0, width=128, height=128)
    paint = sheet.add("SolidMask", (230, 760, 200, 110), "White", value=1.0, width=60, height=32)
    mask = sheet.add(
        "MaskComposite", (460, 760, 200, 150), "The mask", destination=ground[0], source=paint[0], x=34, operation="add"
    )
    show = sheet.add("MaskPreview", (0, 960, 660, 240), mask=mask[0])
    wires = {**wires, "mask": mask[0]}
    one = turn(sheet, (760, 80, 340, 540), "Turn 1", "write OK on the sign", start[0], wires)
    two = turn(sheet, (1140, 80, 340, 540), "Turn 2", "draw a heart on the sign", one[0], wires)
    strip = sheet.add("AnchorEditFilmstrip", (760, 740, 720, 560), session=two[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Where it may change", PINK, ground, paint, mask, show)
    sheet.group("3  Edits", BLUE, one, two)
    sheet.group("4  Look", GREEN, strip)


def variants(sheet: Sheet) -> None:
    sheet.note(VARIANTS, (0, 400, 660, 230))
    tiny, start, wires = bundled(sheet)
    several = sheet.add(
        "AnchorEditVariations",
        (760, 80, 720, 560),
        **wires,
        session=start[0],
        instruction="add a hat",
        seed=7,
        count=4,
    )
    pick = sheet.add("AnchorEditPick", (1580, 80, 300, 90), variations=several[0], number=3)
    on = turn(sheet, (1580, 300, 300, 540), "The next turn", "change the background to blue", pick[0], wires)
    strip = sheet.add("AnchorEditFilmstrip", (760, 760, 720, 560), session=on[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Candidates", BLUE, several)
    sheet.group("3  The one to go on with", PINK, pick)
    sheet.group("4  Go on", BLUE, on)
    sheet.group("5  Look", GREEN, strip)


def native_sampler(sheet: Sheet) -> None:
    sheet.note(NATIVE_SAMPLER, (0, 400, 660, 210))
    tiny, start, wires = bundled(sheet)
    words = sheet.add(
        "PrimitiveStringMultiline", (760, 80, 300, 110), "Instruction", value="change the background to blue"
    )
    text = sheet.add("CLIPTextEncode", (760, 250, 300, 90), clip=wires["clip"], text=words[0])
    apply = sheet.add(
        "AnchorEditApplyMemory", (760, 420, 300, 190), model=wires["model"], session=start[0], positive=text[0], seed=7
    )
    guider = sheet.add("BasicGuider", (1140, 80, 280, 60), model=apply[0], conditioning=text[0])
    sample = sheet.add(
        "SamplerCustomAdvanced",
        (1140, 220, 280, 120),
        noise=apply[2],
        guider=guider[0],
        sampler=apply[3],
        sigmas=apply[4],
        latent_image=apply[1],
    )
    commit = sheet.add(
        "AnchorEditCommitTurn",
        (1140, 420, 280, 190),
        model=apply[0],
        session=start[0],
        latent=sample[0],
        positive=text[0],
        instruction=words[0],
    )
    decode = sheet.add("VAEDecode", (1520, 80, 200, 60), samples=sample[0], vae=tiny[2])
    preview = sheet.add("PreviewImage", (1760, 80, 260, 250), images=decode[0])
    strip = sheet.add("AnchorEditFilmstrip", (1520, 410, 500, 560), session=commit[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  One turn by the host's own nodes", BLUE, words, text, apply, guider, sample, commit)
    sheet.group("3  Look", GREEN, decode, preview, strip)


def save_and_go_on(sheet: Sheet) -> None:
    sheet.note(SAVE_AND_GO_ON, (0, 400, 660, 230))
    tiny, start, wires = bundled(sheet)
    one = turn(sheet, (760, 80, 310, 540), "Turn 1", "change the background to blue", start[0], wires)
    two = turn(sheet, (1110, 80, 310, 540), "Turn 2", "write OK on the sign", one[0], wires)
    name = "AnchorEdit/my_session"
    save = sheet.add(
        "AnchorEditSaveSession", (1460, 80, 460, 150), session=two[0], filename_prefix=name, existing="overwrite"
    )
    strip = sheet.add("AnchorEditFilmstrip", (1460, 290, 460, 560), session=two[0])
    load = sheet.add("AnchorEditLoadSession", (760, 960, 310, 150), session=f"{name}.safetensors [output]")
    three = turn(sheet, (1110, 960, 310, 540), "Turn 3", "change the light to sunset", load[0], wires)
    whole = sheet.add("AnchorEditFilmstrip", (1460, 960, 460, 560), session=three[0])
    export = sheet.add("AnchorEditExportTurns", (1460, 1580, 460, 330), session=three[0])
    sheet.group("An image", GREY, tiny, start)
    sheet.group("Today", BLUE, one, two, save, strip)
    sheet.group("Another day", PINK, load, three, whole, export)
    sheet.mute(load, three, whole, export)


def wan_setup(sheet: Sheet) -> None:
    card = CARDS[sheet.name]
    names = {"text": TEXT_ENCODER, "vae": VAE, "files": COMFY_ORG}
    note = WAN_SETUP.format(title=sheet.name, model=card.model, plain=card.plain, memory=card.memory, **names)
    sheet.note(note, (0, 540, 660, 420))
    files = [
        (TEXT_ENCODER, f"{COMFY_ORG}/text_encoders/{TEXT_ENCODER}", "text_encoders"),
        (VAE, f"{COMFY_ORG}/vae/{VAE}", "vae"),
    ]
    model = sheet.add("AnchorEditLoadModel", (0, 80, 310, 330), model_name=card.plain)
    clip = sheet.add("CLIPLoader", (350, 80, 310, 110), models=files[:1], clip_name=TEXT_ENCODER, type="wan")
    vae = sheet.add("VAELoader", (350, 270, 310, 60), models=files[1:], vae_name=VAE)
    wires = {"model": model[0], "clip": clip[0], "vae": vae[0]}
    image = sheet.add("LoadImage", (760, 80, 300, 330), image="example.png")
    policy = sheet.add("AnchorEditMemoryPolicy", (1160, 80, 300, 230), model=model[0], image=image[0], **card.policy)
    start = sheet.add("AnchorEditStart", (1160, 370, 300, 150), image=image[0], policy=policy[0], **wires)
    one = turn(sheet, (1500, 80, 320, 540), "Turn 1", "make the sky a sunset", start[0], wires)
    two = turn(sheet, (1860, 80, 320, 540), "Turn 2", "add a red scarf", one[0], wires)
    strip = sheet.add("AnchorEditFilmstrip", (760, 740, 1020, 560), vae=vae[0], session=two[0], size=512)
    save = sheet.add("SaveImage", (1860, 740, 320, 420), images=two[1], filename_prefix="AnchorEdit")
    sheet.group("1  Files", PINK, model, clip, vae)
    sheet.group("2  Your image", GREY, image)
    sheet.group("3  Edits", BLUE, policy, start, one, two)
    sheet.group("4  Look", GREEN, strip)
    sheet.group("5  Keep", GREEN, save)


SHEETS = {
    "First edit": first_edit,
    "Ten turns": ten_turns,
    "Branches": branches,
    "Masked edit": masked_edit,
    "Variants": variants,
    "Native sampler": native_sampler,
    "Save and go on": save_and_go_on,
    **dict.fromkeys(CARDS, wan_setup),
}
# The nodes whose images the workflow's own image is drawn of, and at which output they are.
IMAGES = {"AnchorEditFilmstrip": 0, "AnchorEditVariations": 1}
# What has to be downloaded first, and so does not run as it is: the nodes that lack a file.
NEED_FILES = dict.fromkeys(CARDS, ("AnchorEditLoadModel", "CLIPLoader", "VAELoader"))


def draw(name: str, info: dict) -> dict:
    """Workflow `name` in the browser's format, by what the host says of its nodes (/object_info)."""
    sheet = Sheet(name, info)
    SHEETS[name](sheet)
    return sheet.json()


def strips(host: Server, workflow: dict, info: dict) -> list[list[Image.Image]]:
    """Run a workflow; the images of its filmstrips and variants."""
    graph = api_graph(workflow, info)
    films = {name: IMAGES[entry["class_type"]] for name, entry in graph.items() if entry["class_type"] in IMAGES}
    for film, output in films.items():
        graph[f"save {film}"] = node("SaveImage", images=[film, output], filename_prefix="image")
    outputs = succeed(host, graph).outputs
    files = [[entry["filename"] for entry in outputs[f"save {film}"]["images"]] for film in films]
    return [[Image.open(host.folder / "output" / name) for name in names] for names in files]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as host:
        info = host.get("/object_info")
        for name in SHEETS:
            workflow = draw(name, info)
            text = json.dumps(workflow, indent=1) + "\n"
            (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
            images = [] if name in NEED_FILES else strips(host, workflow, info)
            thumbnail(name, images, WORKFLOWS / f"{name}.jpg")


if __name__ == "__main__":
    main()
