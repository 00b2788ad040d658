"""The shipped workflows in a browser, as an artist meets them: `make check-comfyui`.

Not named test_*, so that the tests on a host need no browser and none of them skips. Beside COMFYUI_PATH and
COMFYUI_PYTHON this reads CHROMIUM (without it: `chromium` on the PATH) and COMFYUI_ARGS, e.g. --front-end-root for a
host whose own front end is not the installed one. All that the host's requirements name must be installed: without
spandrel the front end of 0.3.64 cannot make a VAELoader. Screenshots to be looked at go to runs/browser/.
"""

import json
import os
import shutil

import pytest
from comfyui_graphs import api_graph
from make_workflows import NEED_FILES, SHEETS, WORKFLOWS
from playwright.sync_api import Page, sync_playwright

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
READY = "types => !!(window.app?.extensionManager && app.graph && types.every(t => LiteGraph.registered_node_types[t]))"
OPENED = "count => app.graph.nodes.length === count && app.graph.nodes.some(node => node.type === 'AnchorEditStart')"
# the picture of the card with this title, which is lazily loaded, under a URL of the browser's own
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
    page.goto(here)
    page.wait_for_function(READY, arg=list(host.get("/object_info")))
    yield page
    page.close()


def test_the_template_browser_shows_every_workflow(page, host, pytestconfig):
    open_templates(page)
    for name in SHEETS:
        page.get_by_text(name, exact=True).first.scroll_into_view_if_needed()
        page.wait_for_function(SHOWN, arg=name)
    picture_of(page, host, "templates", pytestconfig)


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
    picture_of(page, host, name, pytestconfig)


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


def picture_of(page: Page, host, name: str, config) -> None:
    page.wait_for_timeout(2000)  # pictures on nodes are drawn a little later
    version = host.get("/system_stats")["system"]["comfyui_version"]
    folder = config.rootpath / "runs" / "browser" / version
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
