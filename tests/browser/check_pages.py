"""The shipped workflows in a browser, as an artist meets them: `make check-comfyui`.

Not named test_*, so that the tests on a host need no browser and none of them skips. Beside COMFYUI_PATH and
COMFYUI_PYTHON this reads CHROMIUM (without it: `chromium` on the PATH) and COMFYUI_ARGS, e.g. --front-end-root for a
host whose own front end is not the installed one. All that the host's requirements name must be installed: without
spandrel the front end of 0.3.64 cannot make a VAELoader. Screenshots to be looked at go to runs/browser/.
"""

import contextlib
import json
import os
import shutil
import time
import urllib.error
from urllib.parse import quote

import pytest
from comfyui_graphs import api_graph
from comfyui_server import PACK
from playwright.sync_api import Page, sync_playwright
from write_locales import page_path
from write_workflows import NEED_FILES, SHEETS, WORKFLOWS

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
# the nodes are known, and a workflow is open whose changes can be undone
READY = """types => !!(window.app?.extensionManager?.workflow?.activeWorkflow && app.graph
    && types.every(type => LiteGraph.registered_node_types[type]))"""
OPENED = "count => app.graph.nodes.length === count && app.graph.nodes.some(node => node.type === 'AnchorEditStart')"
# the image of the card with this title, which is lazily loaded, under a URL of the browser's own
SHOWN = """name => {
    let card = [...document.querySelectorAll("*")].find(e => !e.children.length && e.textContent.trim() === name)
    while (card && !card.querySelector("img")) card = card.parentElement
    return card?.querySelector("img").naturalWidth === 512
}"""
UNKNOWN = "() => app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
BOXES = "() => app.graph.nodes.map(node => [node.title, ...node.getBounding()])"
QUEUE = """async () => {
    const end = new Promise(done => {
        for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            app.api.addEventListener(kind, event => done([kind, event.detail]), { once: true })
    })
    await app.queuePrompt(0, 1)
    return app.lastNodeErrors && Object.keys(app.lastNodeErrors).length ? ["refused", app.lastNodeErrors] : await end
}"""
TURNS = "() => app.graph.nodes.filter(node => node.type === 'AnchorEditTurn').map(node => node.id)"
# the position on the page of the centre of a node's button
BUTTON = """id => {
    const node = app.graph.getNodeById(id), widget = node.widgets.find(widget => widget.name === "next_turn")
    const { ds, canvas } = app.canvas, box = canvas.getBoundingClientRect()
    const at = axis => (node.pos[axis] + [node.size[0] / 2, widget.last_y + 10][axis] + ds.offset[axis]) * ds.scale
    return [box.left + at(0), box.top + at(1)]
}"""
# a graph of one node: its title, and how its inputs and widgets are called
ALONE = """kind => {
    app.graph.clear()
    const node = LiteGraph.createNode(kind)
    app.graph.add(node)
    const named = entry => entry.localized_name ?? entry.label ?? entry.name
    return [node.title, node.inputs.map(named), (node.widgets ?? []).map(named)]
}"""
# the bundled model, a session and its drift; the id of Start
BARE = """() => {
    app.graph.clear()
    const [tiny, start, drift] = ["LoadTiny", "Start", "Drift"].map((kind, index) => {
        const node = LiteGraph.createNode(`AnchorEdit${kind}`)
        app.graph.add(node)
        node.pos = [400 * index, 100]
        node.setSize([360, 200 * (index + 1)])
        return node
    })
    for (const [slot, name] of ["model", "clip", "vae", "image"].entries()) {
        tiny.connect(slot, start, start.findInputSlot(name))
    }
    start.connect(0, drift, drift.findInputSlot("session"))
    return start.id
}"""
# after that session: two candidates, one of them picked; the id of Pick
PICKED = """id => {
    const start = app.graph.getNodeById(id)
    const [variations, pick] = ["Variations", "Pick"].map((kind, index) => {
        const node = LiteGraph.createNode(`AnchorEdit${kind}`)
        app.graph.add(node)
        node.pos = [400 * index, 800]
        return node
    })
    const put = (name, value) => { variations.widgets.find(widget => widget.name === name).value = value }
    put("count", 2)
    put("seed", 31)
    put("control_after_generate", "fixed")
    start.connect(0, variations, variations.findInputSlot("session"))
    variations.connect(0, pick, pick.findInputSlot("variations"))
    return pick.id
}"""
# the session of Start reaches Drift over a Reroute node, or over a point on the link
REROUTED = """([id, point]) => {
    const { graph } = app, start = graph.getNodeById(id)
    const drift = graph.nodes.find(node => node.type === "AnchorEditDrift"), slot = drift.findInputSlot("session")
    if (point) return graph.createReroute([820, 40], graph.getLink(drift.inputs[slot].link)).id
    const reroute = LiteGraph.createNode("Reroute")
    graph.add(reroute)
    reroute.pos = [820, 40]
    start.connect(0, reroute, 0)
    reroute.connect(0, drift, slot)
    return reroute.id
}"""
# what "Next turn" in a node's menu does, as in a node whose button is not seen; the id of the turn
MENU = """id => {
    const node = app.canvas.graph.getNodeById(id), options = []
    node.getExtraMenuOptions(app.canvas, options)
    options[0].callback()
    return app.canvas.graph.nodes.filter(node => node.type === "AnchorEditTurn").at(-1).id
}"""
# two nodes as other packs have them, which carry the session of Start by name to a new node of a kind; their ids
SET_AND_GET = """([id, kind]) => {
    for (const type of ["SetNode", "GetNode"]) {
        class Carrier extends LiteGraph.LGraphNode {
            constructor(title) {
                super(title)
                this.isVirtualNode = true
                this.addWidget("text", "name", "session", () => {})
                if (type === "SetNode") this.addInput("*", "*")
                this.addOutput("*", "*")
            }
        }
        LiteGraph.registerNodeType(type, Object.assign(Carrier, { title: type }))
    }
    const [set, get, user] = ["SetNode", "GetNode", kind].map((type, index) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [400 * index, 900]
        return node
    })
    app.graph.getNodeById(id).connect(0, set, 0)
    get.connect(0, user, user.findInputSlot("session"))
    return [set.id, user.id]
}"""
SOURCE = """id => {
    const { graph } = app.canvas, node = graph.getNodeById(id)
    const slot = Math.max(0, node.findInputSlot("session"))
    return graph.getLink(node.inputs[slot].link)?.origin_id
}"""
SEED = "id => app.canvas.graph.getNodeById(id).widgets.find(widget => widget.name === 'seed').value"
PUT_SEED = """([id, seed]) => {
    app.canvas.graph.getNodeById(id).widgets.find(widget => widget.name === "seed").value = seed
}"""
# puts a node into a subgraph and opens that; the id of the node in there
INTO_SUBGRAPH = """id => {
    const { type } = app.graph.getNodeById(id)
    app.canvas.emitBeforeChange()
    const { subgraph } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
    app.canvas.emitAfterChange() // a step of undo, as when the artist does it
    app.canvas.setGraph(subgraph)
    return subgraph.nodes.find(node => node.type === type).id
}"""
# the graph as undo must restore it: nodes, where they are, and what feeds them
LAYOUT = """() => app.graph.nodes.map(node => [
    node.id, node.type, ...node.pos, ...node.size,
    ...(node.inputs ?? []).map(input => app.graph.getLink(input.link)?.origin_id ?? null),
]).sort((one, other) => one[0] - other[0])"""
TYPING = "() => document.activeElement?.tagName === 'TEXTAREA' && document.activeElement.value === ''"
STRIP = "() => app.graph.nodes.find(node => node.type === 'AnchorEditFilmstrip').properties.anchoredit_strip"
# moves the canvas so that all of the strip is on the page, where it can be clicked
TO_STRIP = """() => {
    const { pos } = app.graph.nodes.find(node => node.type === "AnchorEditFilmstrip")
    app.canvas.ds.offset = [200 - pos[0], 200 - pos[1]]
    app.canvas.setDirty(true, true)
}"""
STRIP_IN_VIEW = """() => {
    const box = document.querySelector(".anchoredit-strip .thumbs").getBoundingClientRect()
    return box.top > 0 && box.bottom < window.innerHeight
}"""
DRAWN = "() => document.querySelectorAll('.anchoredit-strip .thumb img.there').length"
BROKEN = "() => [...document.images].filter(image => image.src && image.complete && !image.naturalWidth).length"
WIDE = {"width": 1920, "height": 1080}


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        raise FileNotFoundError("no browser: install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, host):
    """The host's page, alone in the world: what it asks of other machines is refused."""
    here = f"http://127.0.0.1:{host.port}"
    host.post("/settings", {"Comfy.TutorialCompleted": True})
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(120_000)
    page.route(lambda url: not url.startswith((here, "data:", "blob:")), lambda route: route.abort())
    page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?" when a workflow is not saved
    page.goto(here)
    page.wait_for_function(READY, arg=list(host.get("/object_info")))
    yield page
    page.close()


def test_the_template_browser_shows_every_workflow(page, host, pytestconfig):
    open_templates(page)
    for name in SHEETS:
        page.get_by_text(name, exact=True).first.scroll_into_view_if_needed()
        page.wait_for_function(SHOWN, arg=name)
    image_of(page, host, "templates", pytestconfig)


@pytest.mark.parametrize("name", SHEETS)
def test_a_workflow_opens_from_it_and_runs(page, host, name, pytestconfig):
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    open_templates(page)
    page.get_by_text(name, exact=True).first.click()
    page.wait_for_function(OPENED, arg=len(workflow["nodes"]))
    assert page.evaluate(UNKNOWN) == []
    assert overlapping(page.evaluate(BOXES)) == []

    exported = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in exported.values():
        node.pop("_meta", None)
        node.pop("is_changed", None)
    assert exported == api_graph(workflow, host.get("/object_info"))
    if name not in NEED_FILES:
        how, detail = page.evaluate(QUEUE)
        assert how == "execution_success", detail
    image_of(page, host, name, pytestconfig)


def test_next_turns_and_the_strip_survive_a_saved_workflow(page, host, pytestconfig):
    open_templates(page)
    page.get_by_text("First edit", exact=True).first.click()
    page.wait_for_function(OPENED, arg=len(json.loads((WORKFLOWS / "First edit.json").read_text())["nodes"]))
    assert page.get_by_text("Run the workflow to see its turns here.").is_visible()
    queue(page)
    page.wait_for_function(f"({DRAWN})() === 3")
    two = page.evaluate(TURNS)

    for number, words in enumerate(("make it night", "give it one eye"), start=3):
        next_turn(page, page.evaluate(TURNS)[-1])
        page.keyboard.type(words)
        assert len(page.evaluate(TURNS)) == number
        assert overlapping(page.evaluate(BOXES)) == []
    added = page.evaluate(TURNS)[2:]
    image_of(page, host, "next turns", pytestconfig)
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    last, previous = (graph[str(node)]["inputs"] for node in reversed(added))
    assert (previous["instruction"], last["instruction"]) == ("make it night", "give it one eye")
    assert (previous["session"], last["session"]) == ([str(two[-1]), 0], [str(added[0]), 0])
    for name in ("seed", "steps", "cfg"):
        assert last[name] == previous[name] == graph[str(two[-1])]["inputs"][name]
    assert not {"model", "clip", "vae"} & set(last)  # a session is one wire
    strip = next(node for node in graph.values() if node["class_type"] == "AnchorEditFilmstrip")
    assert strip["inputs"]["session"] == [str(added[-1]), 0]

    cached = queue(page)
    assert set(map(str, two)) <= cached and not set(map(str, added)) & cached
    page.wait_for_function(f"({DRAWN})() === 5")
    assert [turn["caption"] for turn in page.evaluate(STRIP)["turns"]][3:] == ["make it night", "give it one eye"]
    assert page.evaluate(STRIP)["turn"] == 4
    scrub(page)
    image_of(page, host, "scrubbed", pytestconfig)
    page.locator(".anchoredit-strip .thumb").nth(3).click()
    page.locator(".anchoredit-strip .against").click()
    scrub(page)
    assert page.locator(".anchoredit-strip .label").all_text_contents() == ["source", "turn 3"]
    image_of(page, host, "against the source", pytestconfig)

    next_turn(page, added[-1])
    page.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"({TURNS})().length === 4")
    page.wait_for_function(f"({DRAWN})() === 5")

    saved = save(page, host, "kept")
    reload(page, host)
    page.evaluate("saved => app.loadGraphData(saved, true, true, 'kept')", saved)
    page.wait_for_function(f"({DRAWN})() === 5")
    kept = page.evaluate(STRIP)
    assert (kept["turn"], kept["against"]) == (3, "source")
    assert queue(page)
    assert page.evaluate(TURNS) == [*two, *added]
    next_turn(page, added[-1])
    image_of(page, host, "loaded", pytestconfig)

    for file in (host.folder / "temp").rglob("*.png"):
        file.unlink()
    reload(page, host)
    page.evaluate("saved => app.loadGraphData(saved, true, true, 'kept')", saved)
    page.get_by_text("The images of this run are gone").wait_for()
    assert page.evaluate(BROKEN) == 0
    image_of(page, host, "gone", pytestconfig)

    for nonsense in (None, 7, {"turns": 7}, {"turns": [None, {}], "turn": "x"}, {"turns": [], "turn": 99}):
        strip = next(node for node in saved["nodes"] if node["type"] == "AnchorEditFilmstrip")
        strip["properties"] = {"anchoredit_strip": nonsense}
        page.evaluate("saved => app.loadGraphData(saved, true, true, 'kept')", saved)
        page.get_by_text("Run the workflow to see its turns here.").wait_for()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_names_and_help_are_in_the_language_of_the_artist(page, host, language, pytestconfig):
    host.post("/settings", {"Comfy.Locale": language})
    try:
        reload(page, host)
    finally:
        host.post("/settings", {"Comfy.Locale": "en"})
    words, own = (
        json.loads((PACK / "locales" / language / name).read_text(encoding="utf-8"))
        for name in ("nodeDefs.json", "main.json")
    )
    memory = words["AnchorEditTurn"]["outputs"]["0"]["name"]
    for kind, texts in words.items():
        title, inputs, widgets = page.evaluate(ALONE, kind)
        assert title == texts["display_name"]
        assert set(inputs) <= {entry["name"] for entry in texts["inputs"].values()}
        gives = memory in [entry["name"] for entry in texts["outputs"].values()]
        assert gives <= (own["anchoredit"]["nextTurn"] in widgets)

    page.evaluate(ALONE, "AnchorEditTurn")
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0], false)")
    page.evaluate("app.canvas.centerOnNode(app.graph.nodes[0])")
    page.get_by_test_id("info-button").click()
    help_page = page.locator(".node-help-content")
    help_page.get_by_role("heading", level=1).wait_for()
    written = page_path("AnchorEditTurn", language).read_text(encoding="utf-8")
    assert written.splitlines()[2][:20] in help_page.inner_text()
    image_of(page, host, f"help {language}", pytestconfig)


def test_next_turns_of_a_bare_session_and_its_branches(page, host, pytestconfig):
    start = page.evaluate(BARE)
    next_turn(page, start)
    page.keyboard.type("make it night")
    (one,) = page.evaluate(TURNS)
    for words in ("write OK on the sign", "change the background to pink"):
        next_turn(page, one)
        page.keyboard.type(words)
    assert overlapping(page.evaluate(BOXES)) == []
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    turns = {node["inputs"]["instruction"]: node["inputs"] for node in graph.values() if "Turn" in node["class_type"]}
    assert [turn["session"] for turn in turns.values()] == [[str(start), 0], [str(one), 0], [str(one), 0]]
    assert all(node["seed"] == turns["make it night"]["seed"] for node in turns.values())
    drift = next(node["inputs"] for node in graph.values() if node["class_type"] == "AnchorEditDrift")
    shown = graph[drift["session"][0]]["inputs"]["instruction"]
    assert shown == "write OK on the sign"  # the second branch has a preview of its own
    queue(page)
    page.evaluate("Object.assign(app.canvas.ds, { scale: 0.5, offset: [200, 0] })")
    page.evaluate("app.canvas.setDirty(true, true)")
    image_of(page, host, "branches by button", pytestconfig)
    assert overlapping(page.evaluate(BOXES)) == []  # the host has drawn images on nodes meanwhile


def test_next_turn_of_a_picked_candidate(page, host):
    start = page.evaluate(BARE)
    pick = page.evaluate(PICKED, start)
    next_turn(page, pick)
    page.keyboard.type("make it night")
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    turn, variations = (
        next(node["inputs"] for node in graph.values() if node["class_type"] == f"AnchorEdit{kind}")
        for kind in ("Turn", "Variations")
    )
    assert turn["session"] == [str(pick), 0]
    for name in ("seed", "steps", "cfg"):
        assert turn[name] == variations[name]
    queue(page)


@pytest.mark.parametrize("point", [False, True], ids=["node", "point"])
def test_next_turn_behind_a_reroute(page, host, point):
    start = page.evaluate(BARE)
    reroute = page.evaluate(REROUTED, [start, point])
    next_turn(page, start)
    next_turn(page, page.evaluate(TURNS)[0])
    one, two = page.evaluate(TURNS)
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    sessions = [graph[str(node)]["inputs"]["session"][0] for node in (one, two)]
    assert sessions == [str(start), str(one)]
    drift = next(node["inputs"] for node in graph.values() if node["class_type"] == "AnchorEditDrift")
    assert drift["session"] == [str(two), 0]  # the reroute goes along with what hangs on it
    assert overlapping(page.evaluate(BOXES)) == []
    if point:
        passes = "id => [...app.graph.reroutes.get(id).linkIds].map(link => app.graph.getLink(link).origin_id)"
        assert page.evaluate(passes, reroute) == [two]


def test_next_turn_on_a_pinned_and_on_a_collapsed_node(page, host, pytestconfig):
    start = page.evaluate(BARE)
    next_turn(page, start)
    (one,) = page.evaluate(TURNS)
    page.evaluate("id => app.graph.getNodeById(id).pin(true)", one)
    next_turn(page, one)
    one, two = page.evaluate(TURNS)
    page.evaluate("id => app.graph.getNodeById(id).collapse()", two)
    page.wait_for_timeout(500)  # the canvas says how wide its title is
    three = page.evaluate(MENU, two)
    gap = """([one, other]) => {
        const [left, , width] = app.graph.getNodeById(one).getBounding()
        return app.graph.getNodeById(other).pos[0] - left - width
    }"""
    assert 0 < page.evaluate(gap, [two, three]) < 100  # beside the title, not beside the node as it was
    assert [page.evaluate(SOURCE, node) for node in (one, two, three)] == [start, one, two]
    drift = page.evaluate("app.graph.nodes.find(node => node.type === 'AnchorEditDrift').id")
    assert page.evaluate(SOURCE, drift) == three
    page.evaluate("app.canvas.setDirty(true, true)")
    page.wait_for_timeout(500)
    assert overlapping(page.evaluate(BOXES)) == []
    page.evaluate("Object.assign(app.canvas.ds, { scale: 0.6, offset: [200, 200] })")
    image_of(page, host, "collapsed", pytestconfig)


def test_one_step_of_undo_takes_a_next_turn_back(page, host):
    start = page.evaluate(BARE)
    next_turn(page, start)
    (one,) = page.evaluate(TURNS)
    before = page.evaluate(LAYOUT)
    next_turn(page, one)
    after = page.evaluate(LAYOUT)
    assert len(after) == len(before) + 1
    for command, count, layout in (("Undo", 1, before), ("Redo", 2, after), ("Undo", 1, before)):
        page.evaluate("command => app.extensionManager.command.execute(`Comfy.${command}`)", command)
        page.wait_for_function(f"({TURNS})().length === {count}")
        assert page.evaluate(LAYOUT) == layout
    next_turn(page, one)
    assert [node[1:] for node in page.evaluate(LAYOUT)] == [node[1:] for node in after]


def test_next_turn_over_set_and_get_nodes(page, host):
    start = page.evaluate(BARE)
    setter, rewind = page.evaluate(SET_AND_GET, [start, "AnchorEditRewind"])
    one = page.evaluate(MENU, start)
    assert page.evaluate(SOURCE, setter) == start  # a Rewind hangs on it, so the new turn is a branch
    page.evaluate(PUT_SEED, [one, 77])
    page.evaluate("([one, set]) => app.graph.getNodeById(one).connect(0, app.graph.getNodeById(set), 0)", [one, setter])
    two = page.evaluate(MENU, rewind)
    assert page.evaluate(SEED, two) == 77  # the settings of the turn upstream, found through Get and Set


def test_a_filmstrip_behind_set_and_get_nodes_goes_along(page, host):
    start = page.evaluate(BARE)
    setter, _ = page.evaluate(SET_AND_GET, [start, "AnchorEditFilmstrip"])
    one = page.evaluate(MENU, start)
    assert page.evaluate(SOURCE, setter) == one
    assert page.evaluate("app.graph.nodes.filter(node => node.type === 'PreviewImage').length") == 0


def test_next_turn_in_a_subgraph(page, host, pytestconfig):
    start = page.evaluate(BARE)
    one = page.evaluate(MENU, start)
    page.evaluate(PUT_SEED, [one, 55])
    inside = page.evaluate(INTO_SUBGRAPH, one)
    page.evaluate(MENU, inside)
    page.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function("app.canvas.graph.nodes.length === 1")  # still in the subgraph
    two = page.evaluate(MENU, inside)
    assert page.evaluate(SOURCE, two) == inside
    assert page.evaluate(SEED, two) == 55
    page.wait_for_function(TYPING)
    page.keyboard.type("make it night")
    image_of(page, host, "subgraph", pytestconfig)
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    drift = next(node["inputs"] for node in graph.values() if node["class_type"] == "AnchorEditDrift")
    newest = graph[drift["session"][0]]["inputs"]  # it hangs on the subgraph, whose output goes along
    assert newest["instruction"] == "make it night"
    assert graph[newest["session"][0]]["inputs"]["session"] == [str(start), 0]
    queue(page)


def test_next_turn_of_a_session_that_enters_a_subgraph(page, host):
    start = page.evaluate(BARE)
    one = page.evaluate(MENU, start)
    page.evaluate(PUT_SEED, [one, 56])
    rewind = page.evaluate(
        """id => {
        const node = LiteGraph.createNode("AnchorEditRewind")
        app.graph.add(node)
        node.pos = [1600, 800]
        app.graph.getNodeById(id).connect(0, node, 0)
        return node.id
    }""",
        one,
    )
    inside = page.evaluate(INTO_SUBGRAPH, rewind)
    two = page.evaluate(MENU, inside)
    assert page.evaluate(SEED, two) == 56  # of the turn outside
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    turns = {name: node["inputs"] for name, node in graph.items() if node["class_type"] == "AnchorEditTurn"}
    assert sorted(node["session"][0] == str(start) for node in turns.values()) == [False, True]


def next_turn(page: Page, node: int) -> None:
    """Presses the button with the mouse, and waits until words can be typed."""
    page.evaluate("id => app.canvas.centerOnNode(app.graph.getNodeById(id))", node)
    page.wait_for_timeout(300)  # the canvas is drawn again
    page.mouse.click(*page.evaluate(BUTTON, node))
    page.wait_for_function(TYPING)


def queue(page: Page) -> set[str]:
    """Runs the workflow; the nodes that the host did not have to run again."""
    how, detail, cached = page.evaluate(f"""async () => {{
        let cached = []
        const note = event => cached.push(...event.detail.nodes)
        app.api.addEventListener("execution_cached", note)
        const [how, detail] = await ({QUEUE})()
        app.api.removeEventListener("execution_cached", note)
        return [how, detail, cached]
    }}""")
    assert how == "execution_success", detail
    return set(cached)


def scrub(page: Page) -> None:
    """Drags over the image, from its left to its middle."""
    page.evaluate(TO_STRIP)
    page.wait_for_function(STRIP_IN_VIEW)
    box = page.locator(".anchoredit-strip .stage").bounding_box()
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 8, height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, height, steps=5)
    page.mouse.up()
    assert page.locator(".anchoredit-strip.split").count() == 1


def save(page: Page, host, name: str) -> dict:
    """Saves the workflow as the artist does; what lies in the host's file then."""
    page.evaluate("void app.extensionManager.command.execute('Comfy.SaveWorkflowAs')")
    field = page.get_by_role("dialog").get_by_role("textbox")
    field.fill(name)
    field.press("Enter")
    file = quote(f"workflows/{name}.json", safe="")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        page.wait_for_timeout(200)
        with contextlib.suppress(urllib.error.HTTPError):  # not written yet
            return host.get(f"/userdata/{file}")
    raise AssertionError(f"the host has no file {name}.json")


def reload(page: Page, host) -> None:
    page.reload()
    page.wait_for_function(READY, arg=list(host.get("/object_info")))


def open_templates(page: Page) -> None:
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("anchoredit", exact=True).first.click()


def overlapping(boxes: list) -> list[tuple[str, str]]:
    """Titles of nodes that cover each other; a box is title, left, top, width, height."""
    pairs = [(one, two) for number, one in enumerate(boxes) for two in boxes[:number]]
    return [
        (one[0], two[0])
        for one, two in pairs
        if all(abs(2 * (one[i] - two[i]) + one[i + 2] - two[i + 2]) < one[i + 2] + two[i + 2] for i in (1, 2))
    ]


def image_of(page: Page, host, name: str, config) -> None:
    page.wait_for_timeout(2000)  # images on nodes are drawn a little later
    version = host.get("/system_stats")["system"]["comfyui_version"]
    folder = config.rootpath / "runs" / "browser" / version
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
