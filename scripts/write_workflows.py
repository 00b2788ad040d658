"""Write the files in workflows/ and their thumbnails from what a running host knows of the nodes: `make workflows`.

When a node gets an input, every workflow gets its default; what a workflow is about is said below. The oldest host
should write them, because newer ones read its files.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from running_host import MUTED, WIDGETS, Server, api_graph, node, running_host, succeed
from thumbnails import thumbnail

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
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
3. Press **Next turn** on Turn 2, write what to change, run. The filmstrip moves to the new turn.
4. Drag over the large image of the filmstrip: the turn before is on the left, this one on the right.

**A session is one wire.** Start takes MODEL, CLIP, VAE and the image; every later node needs only the session.

The small model knows drawings of 128x128 pixels and instructions such as *change the background to blue*, \
*write OK on the sign*, *make it black and white*, *bring the colours back*, *make it night*. For photographs see \
**Wan 2.1 set-up**.
"""
TEN_TURNS = """\
## Ten turns

One instruction per line; **Chain** makes one turn of each.

1. **Run**. The filmstrip shows the source and all turns.
2. Change a line and run again: that line and those below it are computed, the ones above are not.

The **Memory Policy** lets every turn see the source image (the anchor) and the last two turns, so the tenth turn \
costs as much as the third. Set *anchor_frames* to 0 and compare the last images with the source.
"""
BRANCHES = """\
## Branches

Two turns on the session of **Turn 2** are two branches. They share turns 1 and 2, which are computed once, and do \
not change each other.

1. **Run**. Each filmstrip shows one branch from the source on.
2. Change the instruction of one branch and run again: the other one is not computed.

To go back by number use **Rewind**: a turn after Rewind is a branch too.
"""
MASKED_EDIT = """\
## Masked edit

Where the mask is black, every pixel stays bit for bit as it was, at the source's own size; the edit fades in just \
inside the edge of the mask.

1. **Run**. Both turns may change only the sign.
2. Change *x*, *y*, *width* and *height* of the mask, or disconnect it from a turn, and run again.

For your own image: *Load Image*, right click, **Open in MaskEditor**, paint, and connect its **MASK** to the turns. \
A mask has the size of the source image. Each turn may have another one.
"""
VARIATIONS = """\
## Variations

**Variations** makes several candidates for one turn at once; **Pick** chooses the one to go on with.

1. **Run**, and look at the candidates.
2. Change *number* in **Pick** and run again: only the turn after it is computed.
3. None is right? Change the seed of Variations.

The first candidate is what a Turn with the same seed makes. The others have the seeds that are written under them: \
a Turn with that seed makes the same image.
"""
NATIVE_SAMPLER = """\
## Native sampler

**Apply Memory** gives a MODEL that sees the session, and what *SamplerCustomAdvanced* needs for the next turn. \
**Commit Turn** adds the sampled latent to the session.

1. Write the **Instruction** and run. The image is the one that Turn makes from the same seed.
2. Put your own guider, sigmas or model patches between Apply Memory and the sampler.

LoRA: connect a patched MODEL to **both** Apply Memory and Commit Turn, so that the turn is remembered by the model \
that made it. For a second turn copy the blue group and connect Commit Turn's **session** to its Apply Memory and \
its Commit Turn.
"""
SAVE_AND_GO_ON = """\
## Save and go on

1. **Run**. *Today* makes two turns and saves the session in `output/AnchorEdit/my_session.safetensors`.
2. *Another day*, also after a restart: right-click the title of the pink group, *Set Group Nodes to Always*, and \
set the blue group to *Never*. Press **R**, so that **Load Session** lists the new file, and run: turn 3 goes on \
from turn 2. The images that it sees are encoded again first, one model pass each.
3. **Export Turns** saves a PNG of every turn. Drag one into ComfyUI: its workflow opens.

The file holds no model: connect MODEL, CLIP and VAE to Load Session. A loaded session is like any other: go back \
in it with **Rewind**, make branches, save it again. With *keep* every save is a file with the next number.
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
that everything is connected, but it makes a new image instead of an edit, and the node says so.

{memory}

Results have exactly the size of your image; **Start** says at which size it is edited. LoRA: put \
*LoraLoaderModelOnly* before Start, or connect it to the *model* of the turn from which on it holds. Stock \
*Load Diffusion Model* works too; for a GGUF file use *Unet Loader (GGUF)* of ComfyUI-GGUF, then **Model Settings**.
"""


@dataclass(frozen=True)
class Setup:
    """Hold a set-up for Wan 2.1: which file, how its K/V are kept, and what that means at 1024x1024."""

    model: str
    plain: str
    memory: str
    policy: dict


SETUPS = {
    "Wan 2.1 set-up": Setup(
        "a Wan 2.1 text-to-video model, 1.3B or 14B",
        TRANSFORMER,
        "**Memory Policy** says what turns will cost with your model and image; in the workflows for 12, 16 and 24 GB "
        "it is set.",
        {},
    ),
    "Wan 2.1 on 12 GB": Setup(
        "Wan 2.1 1.3B, 2.8 GB",
        TRANSFORMER,
        "The model and 3.8 GB of keys and values (the source and four turns of 1024x1024) fit together. On 8 GB choose "
        "`float8_e4m3fn` in **Memory Policy**, which halves them.",
        {},
    ),
    "Wan 2.1 on 16 GB": Setup(
        "Wan 2.1 14B in fp8, 14 GB",
        LARGE,
        "The model alone fills the GPU, so keys and values are kept in system RAM in 8 bits: 8.4 GB for the source "
        "and four turns of 1024x1024. Each layer's are copied while the layer before computes.",
        {"kv_device": "cpu", "kv_dtype": "float8_e4m3fn"},
    ),
    "Wan 2.1 on 24 GB": Setup(
        "Wan 2.1 14B in fp8, 14 GB",
        LARGE,
        "The model and 6.7 GB of keys and values in 8 bits (the source and three turns of 1024x1024) fit together. "
        "With a longer window they are kept in system RAM automatically.",
        {"window": 3, "kv_dtype": "float8_e4m3fn"},
    ),
}


@dataclass(frozen=True)
class Wire:
    """Name an output: the id of its node and its slot."""

    node: int
    slot: int


@dataclass
class Sheet:
    """Hold one workflow in the browser's format. `info` is what the host says of its nodes (/object_info)."""

    name: str
    info: dict
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    def add(self, kind: str, box: tuple, title: str = "", /, **inputs) -> Node:
        """Add a node at `box` (x, y, width, height); `inputs` are wires and values of widgets by name."""
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
        if title:
            entry["title"] = title
        self.nodes.append(entry)
        return Node(entry)

    def download(self, node: Node, name: str, url: str, directory: str) -> None:
        """Let the browser offer a file that a node loads, if it is missing."""
        node.entry["properties"].setdefault("models", []).append({"name": name, "url": url, "directory": directory})

    def note(self, text: str, box: tuple) -> None:
        """Add a note in Markdown at `box`."""
        number = len(self.nodes) + 1
        entry = {"id": number, "type": "MarkdownNote", "pos": list(box[:2]), "size": list(box[2:]), "flags": {}}
        entry |= {"order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
        self.nodes.append(entry | {"widgets_values": [text.strip()], "title": "Read me"})

    def group(self, title: str, color: str, *members: Node) -> None:
        """Draw a frame around nodes."""
        boxes = [(*node.entry["pos"], *node.entry["size"]) for node in members]
        left, top = min(x for x, *_ in boxes) - GROUP_MARGIN, min(y for _, y, *_ in boxes) - NODE_TITLE - GROUP_TITLE
        right, bottom = max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)
        bounding = [left, top, right + GROUP_MARGIN - left, bottom + GROUP_MARGIN - top]
        group = {"id": len(self.groups) + 1, "title": title, "bounding": bounding, "color": color}
        self.groups.append(group | {"font_size": 24, "flags": {}})

    def mute(self, *members: Node) -> None:
        """Keep nodes from running until the artist switches them on."""
        for member in members:
            member.entry["mode"] = MUTED

    def json(self) -> dict:
        """Return the workflow as the browser saves it."""
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
    """Give the outputs of a node as wires: node[0] is its first."""

    entry: dict

    def __getitem__(self, slot: int) -> Wire:
        return Wire(self.entry["id"], slot)


LOADER, START = (0, 80, 250, 110), (300, 80, 260, 190)  # x, y, width, height
NOTE_TOP, NOTE_WIDTH = 400, 560
TURN_WIDTH, TURN_HEIGHT = 300, 540  # with the preview that the host draws while a turn is made
FIRST, NEXT = 660, 340  # x of the first turn; from one turn to the next


def bundled(sheet: Sheet, note: str = "", height: int = 0, **start) -> tuple[Node, Node]:
    """Add the bundled model and a session on its image, and a note of a height below them."""
    if note:
        sheet.note(note, (0, NOTE_TOP, NOTE_WIDTH, height))
    tiny = sheet.add("AnchorEditLoadTiny", LOADER)
    networks = {"model": tiny[0], "clip": tiny[1], "vae": tiny[2]}
    return tiny, sheet.add("AnchorEditStart", START, **networks, image=tiny[3], **start)


def turn(sheet: Sheet, corner: tuple, title: str, instruction: str, session: Wire, **wires: Wire) -> Node:
    """Add a turn with its upper left corner at (x, y)."""
    box = (*corner, TURN_WIDTH, TURN_HEIGHT)
    return sheet.add("AnchorEditTurn", box, title, session=session, instruction=instruction, seed=7, **wires)


def first_edit(sheet: Sheet) -> None:
    """Lay out two turns on the bundled image."""
    tiny, start = bundled(sheet, FIRST_EDIT, 260)
    one = turn(sheet, (FIRST, 80), "Turn 1", "change the background to blue", start[0])
    two = turn(sheet, (FIRST + NEXT, 80), "Turn 2", "write OK on the sign", one[0])
    strip = sheet.add("AnchorEditFilmstrip", (1400, 80, 480, TURN_HEIGHT), session=two[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Edits", BLUE, one, two)
    sheet.group("3  Look", GREEN, strip)


def ten_turns(sheet: Sheet) -> None:
    """Lay out a chain under a short window."""
    lines = ["change the background to blue", "write OK on the sign", "make it black and white"]
    lines += ["bring the colours back", "change the light to sunset", "draw a heart on the sign"]
    lines += ["change the light to day", "change the background to yellow", "clear the sign", "undo the last change"]
    policy = sheet.add("AnchorEditMemoryPolicy", (0, 270, 250, 290), anchor_frames=1, window=2)
    sheet.note(TEN_TURNS, (0, 660, NOTE_WIDTH, 200))
    tiny, start = bundled(sheet, policy=policy[0])
    chain = sheet.add("AnchorEditChain", (FIRST, 80, 360, 620), session=start[0], instructions="\n".join(lines), seed=7)
    strip = sheet.add("AnchorEditFilmstrip", (1120, 80, 760, 620), session=chain[0], size=160)
    sheet.group("1  An image, and what turns may see", GREY, policy, tiny, start)
    sheet.group("2  Edits", BLUE, chain)
    sheet.group("3  Look", GREEN, strip)


def branches(sheet: Sheet) -> None:
    """Lay out two turns on one session."""
    tiny, start = bundled(sheet, BRANCHES, 200)
    one = turn(sheet, (FIRST, 80), "Turn 1", "change the background to blue", start[0])
    two = turn(sheet, (FIRST + NEXT, 80), "Turn 2", "write OK on the sign", one[0])
    branches = [
        ("One branch", PINK, 80, "change the light to sunset"),
        ("The other branch", GREEN, 760, "make it black and white"),
    ]
    for title, color, y, instruction in branches:
        three = turn(sheet, (1400, y), f"Turn 3: {title.lower()}", instruction, two[0])
        strip = sheet.add("AnchorEditFilmstrip", (1740, y, 560, TURN_HEIGHT), session=three[0])
        sheet.group(title, color, three, strip)
    sheet.group("An image", GREY, tiny, start)
    sheet.group("What both branches share", BLUE, one, two)


def masked_edit(sheet: Sheet) -> None:
    """Lay out two turns that may change only the sign."""
    sheet.note(MASKED_EDIT, (FIRST, 720, NEXT + TURN_WIDTH, 220))
    tiny, start = bundled(sheet)
    size = {"width": 128, "height": 128}
    ground = sheet.add("SolidMask", (0, 430, 220, 110), "Black", value=0.0, **size)
    paint = sheet.add("SolidMask", (0, 590, 220, 110), "White", value=1.0, width=60, height=32)
    mask = sheet.add(
        *("MaskComposite", (260, 430, 220, 150), "The mask"),
        destination=ground[0],
        source=paint[0],
        x=34,
        operation="add",
    )
    show = sheet.add("MaskPreview", (260, 630, 220, 260), mask=mask[0])
    one = turn(sheet, (FIRST, 80), "Turn 1", "write OK on the sign", start[0], mask=mask[0])
    two = turn(sheet, (FIRST + NEXT, 80), "Turn 2", "draw a heart on the sign", one[0], mask=mask[0])
    strip = sheet.add("AnchorEditFilmstrip", (1400, 80, 480, TURN_HEIGHT), session=two[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Where it may change", PINK, ground, paint, mask, show)
    sheet.group("3  Edits", BLUE, one, two)
    sheet.group("4  Look", GREEN, strip)


def variations(sheet: Sheet) -> None:
    """Lay out four candidates for a turn, and a turn on the one that is picked."""
    tiny, start = bundled(sheet, VARIATIONS, 230)
    candidates = sheet.add(
        *("AnchorEditVariations", (FIRST, 80, 460, TURN_HEIGHT)),
        session=start[0],
        instruction="add a hat",
        seed=7,
        count=4,
    )
    pick = sheet.add("AnchorEditPick", (1220, 80, 240, 110), variations=candidates[0], number=3)
    following = turn(sheet, (1560, 80), "The next turn", "change the background to blue", pick[0])
    strip = sheet.add("AnchorEditFilmstrip", (1960, 80, 480, TURN_HEIGHT), session=following[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  Candidates", BLUE, candidates)
    sheet.group("3  Choose", PINK, pick)
    sheet.group("4  Go on", BLUE, following)
    sheet.group("5  Look", GREEN, strip)


def native_sampler(sheet: Sheet) -> None:
    """Lay out one turn by SamplerCustomAdvanced."""
    tiny, start = bundled(sheet, NATIVE_SAMPLER, 270)
    words = sheet.add(
        "PrimitiveStringMultiline", (FIRST, 80, 280, 110), "Instruction", value="change the background to blue"
    )
    text = sheet.add("CLIPTextEncode", (FIRST, 260, 280, 90), clip=tiny[1], text=words[0])
    apply = sheet.add("AnchorEditApplyMemory", (FIRST, 430, 280, 190), session=start[0], positive=text[0], seed=7)
    guider = sheet.add("BasicGuider", (FIRST + 330, 260, 240, 60), model=apply[0], conditioning=text[0])
    sample = sheet.add(
        *("SamplerCustomAdvanced", (FIRST + 330, 390, 240, 350)),
        noise=apply[2],
        guider=guider[0],
        sampler=apply[3],
        sigmas=apply[4],
        latent_image=apply[1],
    )
    commit = sheet.add(
        *("AnchorEditCommitTurn", (FIRST + 620, 260, 260, 190)),
        session=start[0],
        latent=sample[0],
        positive=text[0],
        instruction=words[0],
    )
    strip = sheet.add("AnchorEditFilmstrip", (1640, 80, 480, TURN_HEIGHT), session=commit[0])
    sheet.group("1  An image", GREY, tiny, start)
    sheet.group("2  One turn by the host's own nodes", BLUE, words, text, apply, guider, sample, commit)
    sheet.group("3  Look", GREEN, strip)


def save_and_go_on(sheet: Sheet) -> None:
    """Lay out a session that is saved, and continued from its file."""
    tiny, start = bundled(sheet, SAVE_AND_GO_ON, 290)
    one = turn(sheet, (FIRST, 80), "Turn 1", "change the background to blue", start[0])
    two = turn(sheet, (FIRST + NEXT, 80), "Turn 2", "write OK on the sign", one[0])
    name = "AnchorEdit/my_session"
    strip = sheet.add("AnchorEditFilmstrip", (FIRST + 2 * NEXT, 80, 440, TURN_HEIGHT), session=two[0])
    save = sheet.add(
        *("AnchorEditSaveSession", (FIRST + 2 * NEXT + 480, 80, 300, 150)),
        session=two[0],
        filename_prefix=name,
        existing="overwrite",
    )
    again = sheet.add("AnchorEditLoadTiny", (FIRST - 300, 800, 250, 110))
    load = sheet.add(
        *("AnchorEditLoadSession", (FIRST, 800, 300, 190)),
        file=f"{name}.safetensors [output]",
        model=again[0],
        clip=again[1],
        vae=again[2],
    )
    three = turn(sheet, (FIRST + NEXT, 800), "Turn 3", "change the light to sunset", load[0])
    whole = sheet.add("AnchorEditFilmstrip", (FIRST + 2 * NEXT, 800, 440, TURN_HEIGHT), session=three[0])
    export = sheet.add("AnchorEditExportTurns", (FIRST + 2 * NEXT + 480, 800, 300, 540), session=three[0])
    sheet.group("An image", GREY, tiny, start)
    sheet.group("Today", BLUE, one, two, save, strip)
    sheet.group("Another day", PINK, again, load, three, whole, export)
    sheet.mute(again, load, three, whole, export)


def wan_setup(sheet: Sheet) -> None:
    """Lay out two turns on an image of the artist's with Wan 2.1."""
    setup = SETUPS[sheet.name]
    names = {"text": TEXT_ENCODER, "vae": VAE, "files": COMFY_ORG}
    note = WAN_SETUP.format(title=sheet.name, model=setup.model, plain=setup.plain, memory=setup.memory, **names)
    sheet.note(note, (440, 720, 1000, 330))
    model = sheet.add("AnchorEditLoadModel", (0, 80, 300, 220), model_name=setup.plain)
    clip = sheet.add("CLIPLoader", (0, 440, 300, 110), clip_name=TEXT_ENCODER, type="wan")
    vae = sheet.add("VAELoader", (0, 612, 300, 60), vae_name=VAE)
    for loader, name, folder in ((clip, TEXT_ENCODER, "text_encoders"), (vae, VAE, "vae")):
        sheet.download(loader, name, f"{COMFY_ORG}/{folder}/{name}", folder)
    image = sheet.add("LoadImage", (0, 790, 300, 330), image="example.png")
    policy = sheet.add("AnchorEditMemoryPolicy", (440, 330, 260, 290), model=model[0], image=image[0], **setup.policy)
    networks = {"model": model[0], "clip": clip[0], "vae": vae[0]}
    start = sheet.add("AnchorEditStart", (440, 80, 260, 170), image=image[0], policy=policy[0], **networks)
    one = turn(sheet, (800, 80), "Turn 1", "make the sky a sunset", start[0])
    two = turn(sheet, (800 + NEXT, 80), "Turn 2", "add a red scarf", one[0])
    strip = sheet.add("AnchorEditFilmstrip", (1540, 80, 520, TURN_HEIGHT), session=two[0], size=512)
    save = sheet.add("SaveImage", (1540, 740, 520, 380), images=two[1], filename_prefix="AnchorEdit")
    sheet.group("1  Files", PINK, model, clip, vae)
    sheet.group("2  Your image", GREY, image)
    sheet.group("3  Session", GREY, policy, start)
    sheet.group("4  Edits", BLUE, one, two)
    sheet.group("5  Look", GREEN, strip)
    sheet.group("6  Keep", GREEN, save)


SHEETS = {
    "First edit": first_edit,
    "Ten turns": ten_turns,
    "Branches": branches,
    "Masked edit": masked_edit,
    "Variations": variations,
    "Native sampler": native_sampler,
    "Save and go on": save_and_go_on,
    **dict.fromkeys(SETUPS, wan_setup),
}
# The nodes whose images the workflow's own image is drawn of, and at which output they are.
IMAGES = {"AnchorEditFilmstrip": 0, "AnchorEditVariations": 1}
# What has to be downloaded first, and so does not run as it is: the nodes that lack a file.
NEED_FILES = dict.fromkeys(SETUPS, ("AnchorEditLoadModel", "CLIPLoader", "VAELoader"))


def draw(name: str, info: dict) -> dict:
    """Return workflow `name` in the browser's format, by what the host says of its nodes (/object_info)."""
    sheet = Sheet(name, info)
    SHEETS[name](sheet)
    return sheet.json()


def strips(host: Server, workflow: dict, info: dict) -> list[list[Image.Image]]:
    """Run a workflow; return the images of its filmstrips and variations."""
    graph = api_graph(workflow, info)
    films = {name: IMAGES[entry["class_type"]] for name, entry in graph.items() if entry["class_type"] in IMAGES}
    for film, output in films.items():
        graph[f"save {film}"] = node("SaveImage", images=[film, output], filename_prefix="image")
    outputs = succeed(host, graph).outputs
    files = [[entry["filename"] for entry in outputs[f"save {film}"]["images"]] for film in films]
    return [[Image.open(host.folder / "output" / name) for name in names] for names in files]


def main() -> None:
    """Write all workflows and thumbnails."""
    with running_host() as host:
        info = host.get("/object_info")
        for name in SHEETS:
            workflow = draw(name, info)
            text = json.dumps(workflow, indent=1) + "\n"
            (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
            images = [] if name in NEED_FILES else strips(host, workflow, info)
            thumbnail(name, images, WORKFLOWS / f"{name}.jpg")


if __name__ == "__main__":
    main()
