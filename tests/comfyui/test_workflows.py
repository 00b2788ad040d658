"""The shipped workflows run on a real host, converted as the browser converts them."""

import json
from pathlib import Path

import pytest
from comfyui_graphs import node, succeed

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
NOTES = ("MarkdownNote", "Note")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_is_listed_and_runs(host, path):
    assert path.stem in host.get("/workflow_templates")["anchoredit"]
    run = succeed(host, api_graph(json.loads(path.read_text(encoding="utf-8")), host.get("/object_info")))
    assert run.outputs


def api_graph(workflow: dict, info: dict) -> dict:
    """The browser's format -> the API's."""
    sources = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    graph = {}
    for entry in workflow["nodes"]:
        if entry["type"] in NOTES:
            continue
        inputs = {put["name"]: sources[put["link"]] for put in entry["inputs"] if put["link"] is not None}
        values = list(entry["widgets_values"])
        known = info[entry["type"]]["input"]
        for name, (kind, *options) in {**known.get("required", {}), **known.get("optional", {})}.items():
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = values.pop(0)
                if options and options[0].get("control_after_generate"):
                    values.pop(0)  # "fixed", "increment" ...: the browser's own
        assert not values, f"node {entry['id']} has values left over: {values}"
        graph[str(entry["id"])] = node(entry["type"], **inputs)
    return graph
