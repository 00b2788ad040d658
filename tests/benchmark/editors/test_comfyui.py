"""A workflow over HTTP: marked inputs change, turns are chained, and a failing server is one line of error."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from anchoredit_model.errors import AnchorEditError
from benchmark.__main__ import execute
from benchmark.editors.workflow_graph import find_marks, turn_graph

ASKED = ["--sessions", "2", "--turns", "2", "--size", "32", "--editor", "comfyui"]


def run(argv: list[str]) -> int:
    return execute(["run", *argv])


def node(kind: str, title: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}


PLAIN = {
    "1": node("LoadImage", "My image [image]", image="example.png"),
    "2": node("CLIPTextEncode", "[Text]", text="", clip=["9", 0]),
    "3": node("KSampler", "sampler [seed]", seed=1, steps=4),
    "4": node("PreviewImage", "[output]", images=["3", 0]),
}
WITH_SESSION = {
    "1": node("LoadImage", "[image]", image="example.png"),
    "2": node("AnchorEditStart", "Start", image=["1", 0]),
    "3": node("AnchorEditTurn", "[turn]", session=["2", 0], instruction="", seed=7, model=["9", 0]),
    "4": node("SaveImage", "[output]", images=["3", 1]),
    "5": node("AnchorEditDrift", "Drift", session=["3", 0]),
}


class Host(ThreadingHTTPServer):
    """Hands back the image that it was given, as ComfyUI would; `fails` is an error at that prompt."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.graphs, self.fails = {}, [], None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            name = re.search(rb'filename="([^"]+)"', body)[1].decode()
            edge = b"\r\n--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
            self.server.files[name] = body.partition(b"image/png\r\n\r\n")[2].rpartition(edge + b"--")[0]
            return self.say({"name": name, "subfolder": "", "type": "input"})
        self.server.graphs.append(json.loads(body)["prompt"])
        if self.server.fails == "refuse":
            error = {"message": "Value not in list", "details": "ckpt_name: 'x'"}
            return self.say({"error": {}, "node_errors": {"3": {"errors": [error]}}}, 400)
        self.say({"prompt_id": str(len(self.server.graphs) - 1)})

    def do_GET(self):
        where = urlparse(self.path)
        if self.server.fails == "html":
            return self.reply(b"<html>")
        if where.path == "/queue":
            return self.say({"queue_running": [], "queue_pending": []})
        if self.server.fails == "restart":
            return self.say({})
        if where.path == "/view" and self.server.fails == "cut":
            return self.reply(self.server.files[parse_qs(where.query)["filename"][0]][:60])
        if where.path == "/view":
            return self.reply(self.server.files[parse_qs(where.query)["filename"][0]])
        number = where.path.rpartition("/")[2]
        graph = self.server.graphs[int(number)]
        image = graph[find_marks(graph)["image"]]["inputs"]["image"]
        status, outputs = {"messages": []}, {"4": {"images": [{"filename": image, "subfolder": "", "type": "temp"}]}}
        if self.server.fails == int(number):
            details = {"node_id": "3", "exception_message": "CUDA out of memory"}
            status, outputs = {"messages": [["execution_error", details]]}, {}
        self.say({number: {"status": status, "outputs": outputs}})

    def say(self, answer: dict, status: int = 200) -> None:
        self.reply(json.dumps(answer).encode(), status)

    def reply(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    with Host() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # polls for shutdown
        yield server
        server.shutdown()


def asked(host, tmp_path, graph: dict = PLAIN) -> list[str]:
    (tmp_path / "workflow.json").write_text(json.dumps(graph))
    files = ["--workflow", str(tmp_path / "workflow.json"), "--server", host.url, "--out", str(tmp_path / "run")]
    return [*ASKED, *files]


@pytest.mark.slow
def test_plain_workflow_receives_its_previous_image(host, tmp_path):
    assert run(asked(host, tmp_path)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["overall"]["success_of_edits"]["mean"] == 0 and report["by_turn"]["identity"][1]["mean"] == 1
    assert [graph["3"]["inputs"]["seed"] for graph in host.graphs] == [0, 1, 1, 2]
    assert all(graph["1"]["inputs"]["image"] in host.files for graph in host.graphs)
    assert {graph["2"]["inputs"]["clip"][0] for graph in host.graphs} == {"9"}


def test_turn_node_is_repeated_per_turn():
    marked = find_marks(WITH_SESSION)
    graph = turn_graph(WITH_SESSION, marked, "image.png", ["one", "two", "three"], seed=5)
    turns = ["3", "3-turn2", "3-turn3"]
    assert [graph[name]["inputs"]["instruction"] for name in turns] == ["one", "two", "three"]
    assert [graph[name]["inputs"]["session"] for name in turns] == [["2", 0], ["3", 0], ["3-turn2", 0]]
    assert {graph[name]["inputs"]["seed"] for name in turns} == {5}
    assert graph["4"]["inputs"]["images"] == ["3-turn3", 1] and graph["5"]["inputs"]["session"] == ["3-turn3", 0]
    assert turn_graph(WITH_SESSION, marked, "image.png", ["one"], 5)["4"]["inputs"]["images"] == ["3", 1]
    assert WITH_SESSION["3"]["inputs"]["instruction"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1": node("LoadImage", "image", image="")}, r"no node of the workflow is marked \[image\]. Write"),
        ({"5": node("LoadImage", "[image]", image="")}, r"\[image\] must be in one title, got 2 nodes. Remove it"),
        ({"3": node("KSampler", "[seed]", steps=4)}, r"node '\[seed\]' has no input seed or noise_seed. Move the mark"),
    ],
)
def test_invalid_marks_are_named(host, tmp_path, change, message):
    with pytest.raises(AnchorEditError, match=message):
        run(asked(host, tmp_path, PLAIN | change))


@pytest.mark.slow
def test_server_failure_is_one_error_and_keeps_finished_sessions(host, tmp_path):
    host.fails = 2  # the first turn of the second session
    with pytest.raises(AnchorEditError, match="node 'sampler.*' failed .*CUDA out of memory"):
        run(asked(host, tmp_path))
    host.fails = "refuse"
    with pytest.raises(AnchorEditError, match="refuses the workflow .*Value not in list: ckpt_name"):
        run(asked(host, tmp_path))
    for host.fails, said in (
        ("html", "does not answer as ComfyUI does"),
        ("cut", r"anchoredit_benchmark_\w+_00001.png"),
        ("restart", "has lost a turn, perhaps by a restart. Run again"),
    ):
        with pytest.raises(AnchorEditError, match=said):
            run(asked(host, tmp_path))
    made = len(host.graphs)
    host.fails = None
    assert run(asked(host, tmp_path)) == 0 and len(host.graphs) == made + 2
    host.server_close()
    options = asked(host, tmp_path)
    options[options.index("--out") + 1] = str(tmp_path / "another")
    host.shutdown()
    with pytest.raises(AnchorEditError, match="no answer from .* Start ComfyUI there"):
        run(options)
    with pytest.raises(AnchorEditError, match="must be an address, got 'gpu-box:8188'. Write it as http://"):
        run([*options, "--server", "gpu-box:8188"])
    (tmp_path / "workflow.json").write_text('{"nodes": []}')
    with pytest.raises(AnchorEditError, match="not in the API format"):
        run(options)
