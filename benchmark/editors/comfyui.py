"""Any ComfyUI workflow as an editor, over HTTP: a graph in the API's format whose titles mark what changes.

Put a mark into the title of a node (double click on it), then *File > Export (API)*:

    [image]   its `image` gets the image to edit, uploaded to the server's input folder
    [text]    its `text`, `prompt`, `instruction` or `instructions` gets what is asked
    [seed]    its `seed` or `noise_seed` gets the turn's seed; may be left out
    [turn]    an AnchorEdit Turn: it is text and seed in one, and every turn of a session is a copy of it behind the one
              before, so that the session goes on
    [output]  a Save Image or Preview Image: its first image is the edited one

Without a [turn], the image that a turn has made is uploaded as the next one's [image]: what people do by hand.
"""

from __future__ import annotations

import copy
import hashlib
import http.client
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import decode_image, to_pil

from .base import Editor, noise_seed

MARKS = ("image", "text", "seed", "turn", "output")
_NAMES = {  # of the inputs that a mark stands for; the first that a node has
    "image": ("image",),
    "text": ("instruction", "instructions", "text", "prompt"),
    "seed": ("seed", "noise_seed"),
}
_TIMEOUT = 60  # seconds for one answer of the server
_PATIENCE = 1800  # seconds for one turn
_POLL = 0.05  # seconds, doubled up to the one below
_SLOWEST_POLL = 1.0

Graph = dict[str, dict[str, Any]]


class Server:
    """The few calls of ComfyUI's API that are needed."""

    def __init__(self, url: str):
        if not url.startswith(("http://", "https://")):
            raise AnchorEditError(f"server '{url}' is no address", "Write it as http://127.0.0.1:8188")
        self.url = url.rstrip("/")

    def upload(self, image: Tensor, name: str) -> str:
        """Put an image [3, H, W] into the input folder; the name that LoadImage knows it by."""
        file = io.BytesIO()
        to_pil(image).save(file, format="PNG")
        edge = uuid.uuid4().hex
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n".encode(),
            file.getvalue(),
            f"\r\n--{edge}--\r\n".encode(),
        ]
        answer = self._json("/upload/image", b"".join(parts), f"multipart/form-data; boundary={edge}")
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def run(self, graph: Graph) -> dict[str, Any]:
        """Queues a graph and waits for it; the outputs of its nodes."""
        answer = self._json("/prompt", json.dumps({"prompt": graph}).encode(), "application/json")
        number, pause, began, queued = answer["prompt_id"], _POLL, time.monotonic(), True
        while time.monotonic() - began < _PATIENCE:
            found = self._json(f"/history/{number}").get(number)
            if found:
                self._check(found["status"], graph)
                return found["outputs"]
            if not queued:  # and was not before the history was read, so that it never will be there
                raise AnchorEditError(
                    f"{self.url} has lost a turn, as when it is restarted", "Ask again; finished sessions are kept"
                )
            queued = pause < _SLOWEST_POLL or self._is_queued(number)
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_POLL)
        raise AnchorEditError(
            f"{self.url} has not finished a turn in {_PATIENCE} s", "Look what it is doing, then go on"
        )

    def image(self, file: dict[str, str]) -> Tensor:
        """Return an image [3, H, W] that a node has written."""
        return decode_image(self._ask(f"/view?{urllib.parse.urlencode(file)}"), file["filename"])

    def _is_queued(self, number: str) -> bool:
        queue = self._json("/queue")
        return any(number in entry for entry in (*queue["queue_running"], *queue["queue_pending"]))

    def _json(self, path: str, body: bytes | None = None, kind: str = "") -> dict[str, Any]:
        answer = self._ask(path, body, kind)
        try:
            return json.loads(answer)
        except ValueError:
            raise AnchorEditError(f"{self.url} does not answer as ComfyUI does", "Give the address of one") from None

    def _ask(self, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if kind else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as refusal:
            raise AnchorEditError(
                f"{self.url} refuses the workflow ({_reason(refusal.read())})", "Mend it there"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise AnchorEditError(
                f"no answer from {self.url} ({error})", "Start ComfyUI there and ask again; finished sessions are kept"
            ) from None

    def _check(self, status: dict[str, Any], graph: Graph) -> None:
        for kind, facts in status["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                title = graph.get(facts.get("node_id", ""), {}).get("_meta", {}).get("title", facts.get("node_type"))
                raise AnchorEditError(
                    f"node '{title}' failed ({facts.get('exception_message', kind).strip()[:300]})", "Mend the workflow"
                )


class ComfyUIEditor(Editor):
    """A marked workflow on a server."""

    def __init__(self, server: Server, graph: Graph, sampling_seed: int = 0):
        self.server, self.graph, self.sampling_seed = server, graph, sampling_seed
        self.marked = find_marks(graph)
        self._run = uuid.uuid4().hex[:8]  # lest two runs on one server put their images under one name

    @classmethod
    def open(cls, url: str, workflow: Path, sampling_seed: int = 0) -> ComfyUIEditor:
        return cls(Server(url), read_graph(workflow), sampling_seed)

    @property
    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()
        return {"workflow": digest[:16], "server": self.server.url, "sampling_seed": self.sampling_seed}

    def start(self, image: Tensor, session: int) -> None:
        self._seed = noise_seed(session, self.sampling_seed)
        self._asked: list[str] = []
        self._file = f"anchoredit_benchmark_{self._run}_{session:05d}.png"
        self._name = self.server.upload(image, self._file)

    def edit(self, instruction: str) -> Tensor:
        self._asked.append(instruction)
        graph = turn_graph(self.graph, self.marked, self._name, self._asked, self._seed)
        files = self.server.run(graph).get(self.marked["output"], {}).get("images")
        if not files:
            raise AnchorEditError("the node marked [output] has shown no image", "Mark a Save Image or Preview Image")
        image = self.server.image({name: files[0].get(name, "") for name in ("filename", "subfolder", "type")})
        if "turn" not in self.marked:
            self._name = self.server.upload(image, self._file)
        return image


def read_graph(path: Path) -> Graph:
    """Return a workflow in the API's format."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnchorEditError(
            f"workflow '{path}' cannot be read ({error})", "Export it anew, File > Export (API)"
        ) from None
    if not isinstance(graph, dict) or not all(
        isinstance(node, dict) and "class_type" in node for node in graph.values()
    ):
        raise AnchorEditError(f"'{path}' is not in the API's format", "Use File > Export (API)")
    return graph


def find_marks(graph: Graph) -> dict[str, str]:
    """Which node has which mark."""
    marked: dict[str, str] = {}
    for mark in MARKS:
        nodes = [name for name, node in graph.items() if f"[{mark}]" in node.get("_meta", {}).get("title", "").lower()]
        if len(nodes) > 1:
            raise AnchorEditError(f"{len(nodes)} nodes are marked [{mark}]", "Mark one")
        if nodes:
            marked[mark] = nodes[0]
    wanted = ("image", "output", *(() if "turn" in marked else ("text",)))
    missing = [mark for mark in wanted if mark not in marked]
    if missing:
        raise AnchorEditError(
            f"no node of the workflow is marked [{missing[0]}]",
            f"Write [{missing[0]}] into the title of the node that has it, then File > Export (API)",
        )
    return marked


def turn_graph(graph: Graph, marked: dict[str, str], image: str, asked: list[str], seed: int) -> Graph:
    """Return the graph of the newest turn of a session in which `asked` was asked, one after the other."""
    graph = copy.deepcopy(graph)
    _set(graph, marked["image"], "image", image)
    if "turn" not in marked:
        _set(graph, marked["text"], "text", asked[-1])
        if "seed" in marked:
            _set(graph, marked["seed"], "seed", seed + len(asked) - 1)
        return graph
    first = marked["turn"]
    single, last = graph.pop(first), first
    users = [(name, put, link) for name, node in graph.items() for put, link in node["inputs"].items()]
    for number, text in enumerate(asked):
        last, before = (first if not number else f"{first}-turn{number + 1}"), last
        graph[last] = copy.deepcopy(single)
        if number:
            graph[last]["inputs"]["session"] = [before, 0]
        _set(graph, last, "text", text)
        _set(graph, last, "seed", seed)
    for name, put, link in users:
        if isinstance(link, list) and link[0] == first:
            graph[name]["inputs"][put] = [last, link[1]]
    return graph


def _set(graph: Graph, name: str, mark: str, value: str | int) -> None:
    node = graph[name]
    found = next((put for put in _NAMES[mark] if put in node["inputs"]), None)
    if found is None:
        title = node.get("_meta", {}).get("title", name)
        raise AnchorEditError(f"node '{title}' has no input {' or '.join(_NAMES[mark])}", f"Move the mark [{mark}]")
    node["inputs"][found] = value


def _reason(body: bytes) -> str:
    """Return what a refusal says, in a line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()[:200]
    errors = [error for node in (answer.get("node_errors") or {}).values() for error in node.get("errors", ())]
    if errors:
        return f"{errors[0].get('message')}: {errors[0].get('details')}"[:300]
    error = answer.get("error", answer)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
