"""ComfyUI as a child process with folders of its own, and as much of HTTP and websocket as driving it takes."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
START_SECONDS = 600  # a busy machine imports for minutes
RUN_SECONDS = 600


@dataclass
class Run:
    """What a queued prompt did: the nodes that ran, in order, and how it ended."""

    ran: list[str] = field(default_factory=list)
    outputs: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)  # errors of nodes that were not even tried
    error: dict | None = None
    texts: list[tuple[str, str]] = field(default_factory=list)  # node and the line that it shows
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node, how far its bar is, and of how much
    previews: list[bytes] = field(default_factory=list)  # images as files
    stopped_after: float | None = None  # seconds from the wish to interrupt to the end


def server(folder: Path, *more: str) -> Server | None:
    """The host that the environment names (see conftest.py), with `folder` for its files; None if there is none.

    `more` are arguments of its command line.
    """
    named = os.environ.get("COMFYUI_PATH")
    path = Path(named).expanduser() if named else Path(os.path.abspath(PACK)).parents[1]  # custom_nodes/<pack>
    if not named and not (path / "comfy_api").is_dir():
        return None
    if not (path / "main.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH is {path}, which holds no main.py: name ComfyUI's own folder")
    args = [*shlex.split(os.environ.get("COMFYUI_ARGS", "")), *more]
    return Server(path, os.environ.get("COMFYUI_PYTHON", sys.executable), folder, args)


class Server:
    def __init__(self, comfyui: Path, python: str, folder: Path, args: list[str]):
        self.folder = folder
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (folder / name).mkdir()
        shutil.copy(comfyui / "input" / "example.png", folder / "input")  # LoadImage has it for a start
        (folder / "custom_nodes" / "anchoredit").symlink_to(PACK)
        (folder / "custom_nodes" / "probe").symlink_to(HERE / "probe")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        self.command += ["--disable-auto-launch", "--base-directory", str(folder)]
        self.command += ["--database-url", "sqlite:///:memory:", "--preview-method", "auto", *args]
        self.comfyui = comfyui
        self.client = uuid.uuid4().hex

    def __enter__(self) -> Server:
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(self.command, cwd=self.comfyui, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get("/system_stats")
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log_text()[-4000:]}") from None
                time.sleep(0.5)

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def log_text(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> dict:
        """The answer as JSON, that of a refusal as well."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
        return json.loads(text) if text.startswith(b"{") else {}

    def run(self, prompt: dict, interrupt_in: str = "", workflow: dict | None = None) -> Run:
        """Queues a prompt in the API's format and waits until it is done; interrupts it in the node named.

        `workflow` is what a browser sends along, for the images to carry.
        """
        extra = {"extra_data": {"extra_pnginfo": {"workflow": workflow}}} if workflow else {}
        with _Events(self.port, self.client) as events:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client, **extra})
            run = Run(refused=answer.get("node_errors") or {})
            if "prompt_id" not in answer:  # no output is left that could be made
                assert run.refused, f"the prompt was refused: {json.dumps(answer)[:4000]}"
                return run
            for event in events.until(time.monotonic() + RUN_SECONDS):
                kind, data = event["type"], event.get("data", {})
                if kind in ("text", "preview"):
                    (run.texts if kind == "text" else run.previews).append(data)
                elif data.get("prompt_id") != answer["prompt_id"]:
                    continue
                if kind == "executing" and data["node"] is None:
                    return run
                if kind == "executing":
                    run.ran.append(data["node"])
                    if data["node"] == interrupt_in:
                        asked = time.monotonic()
                        self.post("/interrupt", {})
                elif kind == "progress":
                    run.progress.append((data["node"], data["value"], data["max"]))
                elif kind == "executed":
                    run.outputs[data["node"]] = data["output"]
                elif kind == "execution_interrupted":
                    run.stopped_after = time.monotonic() - asked
                    return run
                elif kind == "execution_error":
                    run.error = data
                    return run
        raise TimeoutError(f"the prompt is not done after {RUN_SECONDS} s:\n{self.log_text()[-4000:]}")


class _Events:
    """The events of a websocket: JSON as it is, binary ones as "text" (node, line) and "preview" (an image's file)."""

    def __init__(self, port: int, client: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=RUN_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /ws?clientId={client} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        self.stream = self.socket.makefile("rb")
        while self.stream.readline() not in (b"\r\n", b""):
            pass

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()
        self.socket.close()

    def until(self, deadline: float):
        message, text = b"", False
        while time.monotonic() < deadline:
            head, length = self.stream.read(2)
            opcode, length = head & 15, length & 127
            if length >= 126:
                size = {126: 2, 127: 8}[length]
                length = int.from_bytes(self.stream.read(size), "big")
            body = self.stream.read(length)
            if opcode == 8:
                raise ConnectionError("ComfyUI closed the connection")
            if opcode == 9:  # a ping wants a pong, masked as all that a client sends
                self.socket.sendall(struct.pack("!BB4s", 0x8A, 0x80 | len(body), bytes(4)) + body)
            elif opcode in (0, 1, 2):
                message, text = (message if opcode == 0 else b"") + body, text if opcode == 0 else opcode == 1
                if head & 0x80:
                    yield json.loads(message) if text else self._binary(message)

    @staticmethod
    def _binary(message: bytes) -> dict:
        kind, number = struct.unpack(">II", message[:8])  # of the message; the length of the node's id, or a file type
        if kind == 3:
            return {"type": "text", "data": (message[8 : 8 + number].decode(), message[8 + number :].decode())}
        return {"type": "preview", "data": message[8:]}
