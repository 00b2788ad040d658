"""Any ComfyUI workflow as an editor, over HTTP: a graph in the API format whose titles mark what changes.

Write a mark into the title of a node (double-click on it), then use *File > Export (API)*:

    [image]   its input `image` gets the image to edit, uploaded to the server's input folder
    [text]    its input `text`, `prompt`, `instruction` or `instructions` gets the instruction
    [seed]    its input `seed` or `noise_seed` gets the turn's seed; optional
    [turn]    an AnchorEdit Turn: text and seed in one; every turn of a session is a copy of it, on the session of the
              copy before
    [output]  a Save Image or Preview Image: its first image is the edited one

Without a [turn], the edited image of a turn is uploaded as the [image] of the next, as people do by hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
from pathlib import Path
from typing import Any

import requests
from torch import Tensor

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import decode_image, to_pil

from .base import Editor, noise_seed
from .workflow_graph import Graph, find_marks, node_title, read_graph, turn_graph

_ANSWER_TIMEOUT = 60  # seconds, for one answer of the server
_TURN_TIMEOUT = 1800  # seconds, for one turn
_FIRST_POLL, _SLOWEST_POLL = 0.05, 1.0  # seconds; doubled from one to the other


class Server:
    """Call the few routes of ComfyUI's API that an editor needs."""

    def __init__(self, url: str):
        if not url.startswith(("http://", "https://")):
            raise AnchorEditError(f"server must be an address, got '{url}'", "Write it as http://127.0.0.1:8188")
        self.url = url.rstrip("/")
        self._http = requests.Session()

    def upload(self, image: Tensor, name: str) -> str:
        """Put an image [3, H, W] into the input folder, and return its name for LoadImage."""
        file = io.BytesIO()
        to_pil(image).save(file, format="PNG")
        files = {"image": (name, file.getvalue(), "image/png")}
        answer = self._json("POST", "/upload/image", files=files, data={"overwrite": "true"})
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def run(self, graph: Graph) -> dict[str, Any]:
        """Queue a graph, wait for it, and return the outputs of its nodes."""
        prompt = self._json("POST", "/prompt", json={"prompt": graph})["prompt_id"]
        pause, began, queued = _FIRST_POLL, time.monotonic(), True
        while time.monotonic() - began < _TURN_TIMEOUT:
            found = self._json("GET", f"/history/{prompt}").get(prompt)
            if found:
                _check(found["status"], graph)
                return found["outputs"]
            if not queued:  # nor was it before the history was read, so it will never be there
                raise AnchorEditError(
                    f"{self.url} has lost a turn, perhaps by a restart", "Run again; finished sessions are kept"
                )
            queued = pause < _SLOWEST_POLL or self._is_queued(prompt)
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_POLL)
        raise AnchorEditError(
            f"{self.url} has not finished a turn in {_TURN_TIMEOUT} s", "See what it is doing, then run again"
        )

    def image(self, file: dict[str, str]) -> Tensor:
        """Download an image [3, H, W] that a node has written."""
        return decode_image(self._request("GET", "/view", params=file).content, file["filename"])

    def _is_queued(self, prompt: str) -> bool:
        queue = self._json("GET", "/queue")
        return any(prompt in entry for entry in (*queue["queue_running"], *queue["queue_pending"]))

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        answer = self._request(method, path, **content)
        try:
            return answer.json()
        except ValueError:
            raise AnchorEditError(f"{self.url} does not answer as ComfyUI does", "Give the address of one") from None

    def _request(self, method: str, path: str, **content: Any) -> requests.Response:
        try:
            answer = self._http.request(method, self.url + path, timeout=_ANSWER_TIMEOUT, **content)
        except requests.RequestException as error:
            raise AnchorEditError(
                f"no answer from {self.url} ({error})", "Start ComfyUI there and run again; finished sessions are kept"
            ) from None
        if not answer.ok:
            raise AnchorEditError(f"{self.url} refuses the workflow ({_reason(answer)})", "Fix it in ComfyUI")
        return answer


class ComfyUIEditor(Editor):
    """Edit with a marked workflow on a server."""

    def __init__(self, server: Server, graph: Graph, sampling_seed: int = 0):
        self.server, self.graph, self.sampling_seed = server, graph, sampling_seed
        self.marked = find_marks(graph)
        self._run = uuid.uuid4().hex[:8]  # two runs on one server must not upload under one name

    @classmethod
    def open(cls, url: str, workflow: Path, sampling_seed: int = 0) -> ComfyUIEditor:
        return cls(Server(url), read_graph(workflow), sampling_seed)

    @property
    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()
        return {"workflow": digest[:16], "server": self.server.url, "sampling_seed": self.sampling_seed}

    def start(self, image: Tensor, session: int) -> None:
        self._seed = noise_seed(session, self.sampling_seed)
        self._instructions: list[str] = []
        self._file = f"anchoredit_benchmark_{self._run}_{session:05d}.png"
        self._name = self.server.upload(image, self._file)

    def edit(self, instruction: str) -> Tensor:
        self._instructions.append(instruction)
        graph = turn_graph(self.graph, self.marked, self._name, self._instructions, self._seed)
        files = self.server.run(graph).get(self.marked["output"], {}).get("images")
        if not files:
            raise AnchorEditError("the node marked [output] has no image", "Mark a Save Image or Preview Image")
        image = self.server.image({name: files[0].get(name, "") for name in ("filename", "subfolder", "type")})
        if "turn" not in self.marked:
            self._name = self.server.upload(image, self._file)
        return image


def _check(status: dict[str, Any], graph: Graph) -> None:
    """Raise AnchorEditError if a node of a finished prompt failed."""
    for kind, details in status["messages"]:
        if kind in ("execution_error", "execution_interrupted"):
            node = details.get("node_id", "")  # of another graph where a node has expanded
            title = node_title(graph, node) if node in graph else details.get("node_type")
            raise AnchorEditError(
                f"node '{title}' failed ({details.get('exception_message', kind).strip()[:300]})", "Fix the workflow"
            )


def _reason(refusal: requests.Response) -> str:
    """Return why the server refused a request, in one line."""
    try:
        answer = refusal.json()
    except ValueError:
        return refusal.text.strip()[:200]
    errors = [error for node in (answer.get("node_errors") or {}).values() for error in node.get("errors", ())]
    if errors:
        return f"{errors[0].get('message')}: {errors[0].get('details')}"[:300]
    error = answer.get("error", answer)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
