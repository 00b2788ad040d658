"""A ComfyUI workflow whose node titles mark what changes from turn to turn.

A graph is in the API format: {node: {"class_type", "inputs": {name: value or [node, output]}, "_meta": {"title"}}}.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from anchoredit_model.errors import AnchorEditError

MARKS = ("image", "text", "seed", "turn", "output")
_INPUTS = {  # the inputs that a mark may stand for; the first one that the node has
    "image": ("image",),
    "text": ("instruction", "instructions", "text", "prompt"),
    "seed": ("seed", "noise_seed"),
}
_SESSION = "session"  # the input of a Turn node that takes the session of the turn before

Graph = dict[str, dict[str, Any]]


def read_graph(path: Path) -> Graph:
    """Read a workflow file in the API format."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnchorEditError(
            f"workflow '{path}' cannot be read ({error})", "Export it again with File > Export (API)"
        ) from None
    if not isinstance(graph, dict) or not all(
        isinstance(node, dict) and "class_type" in node for node in graph.values()
    ):
        raise AnchorEditError(f"'{path}' is not in the API format", "Use File > Export (API)")
    return graph


def find_marks(graph: Graph) -> dict[str, str]:
    """Return the name of the node that has each mark."""
    marked: dict[str, str] = {}
    for mark in MARKS:
        nodes = [name for name in graph if f"[{mark}]" in node_title(graph, name).lower()]
        if len(nodes) > 1:
            raise AnchorEditError(f"[{mark}] must be in one title, got {len(nodes)} nodes", "Remove it from the others")
        if nodes:
            marked[mark] = nodes[0]
    required = ("image", "output", *(() if "turn" in marked else ("text",)))
    missing = [mark for mark in required if mark not in marked]
    if missing:
        raise AnchorEditError(
            f"no node of the workflow is marked [{missing[0]}]",
            f"Write [{missing[0]}] into the title of the node that has it, then File > Export (API)",
        )
    return marked


def turn_graph(graph: Graph, marked: dict[str, str], image: str, instructions: list[str], seed: int) -> Graph:
    """Return the graph of the newest turn of a session with these instructions."""
    graph = copy.deepcopy(graph)
    _set(graph, marked["image"], "image", image)
    if "turn" not in marked:
        _set(graph, marked["text"], "text", instructions[-1])
        if "seed" in marked:
            _set(graph, marked["seed"], "seed", seed + len(instructions) - 1)
        return graph
    first = marked["turn"]
    template, last = graph.pop(first), first
    links = [(name, put, link) for name, node in graph.items() for put, link in node["inputs"].items()]
    for turn, text in enumerate(instructions, start=1):
        last, before = (first if turn == 1 else f"{first}-turn{turn}"), last
        graph[last] = copy.deepcopy(template)
        if turn > 1:
            graph[last]["inputs"][_SESSION] = [before, 0]
        _set(graph, last, "text", text)
        _set(graph, last, "seed", seed)
    for name, put, link in links:
        if isinstance(link, list) and link[0] == first:
            graph[name]["inputs"][put] = [last, link[1]]
    return graph


def node_title(graph: Graph, name: str) -> str:
    """Return a node's title, or its name where it has none."""
    return graph[name].get("_meta", {}).get("title", name)


def _set(graph: Graph, name: str, mark: str, value: str | int) -> None:
    inputs = graph[name]["inputs"]
    found = next((put for put in _INPUTS[mark] if put in inputs), None)
    if found is None:
        raise AnchorEditError(
            f"node '{node_title(graph, name)}' has no input {' or '.join(_INPUTS[mark])}", f"Move the mark [{mark}]"
        )
    inputs[found] = value
