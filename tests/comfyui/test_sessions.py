"""Sessions on disk: another process goes on with one bit by bit, files and names that are none are refused, and what
is exported carries its workflow."""

import json
import os
import shutil

import pytest
import torch
from comfyui_graphs import (
    LINES,
    NETWORKS,
    base_graph,
    native_turn,
    node,
    policy,
    probe,
    read,
    succeed,
    turn,
    turns_graph,
)
from comfyui_server import server
from PIL import Image
from safetensors.torch import save_file

from anchoredit_model.images import load_image, to_pil
from anchoredit_model.memory.session_file import load_session, save_session


@pytest.fixture(scope="module")
def elsewhere(host, tmp_path_factory):
    """The same host in another process, with folders of its own; its images are to carry no metadata."""
    with server(tmp_path_factory.mktemp("elsewhere"), "--disable-metadata") as named:
        yield named


def save(memory: list, prefix: str, existing: str = "keep") -> dict:
    return node("AnchorEditSaveSession", session=memory, filename_prefix=prefix, existing=existing)


def load(file: str, **inputs) -> dict:
    return node("AnchorEditLoadSession", file=file, **{**NETWORKS, **inputs})


def export(memory: list, prefix: str) -> dict:
    return node("AnchorEditExportTurns", session=memory, filename_prefix=prefix)


def loaded_graph(file: str, **inputs) -> dict:
    return {"tiny": node("AnchorEditLoadTiny"), "load": load(file, **inputs)}


def listed(host) -> list[str]:
    """What Load Session offers."""
    options = host.get("/object_info/AnchorEditLoadSession")["AnchorEditLoadSession"]["input"]["required"]["file"]
    return options[1]["options"] if options[0] == "COMBO" else options[0]


def saved_session(host, name: str, lines: list[str], seed: int) -> str:
    """Makes a session in the output folder; its name for Load Session."""
    graph = turns_graph(lines, name, seed=seed)
    graph["save"] = save(graph["probe"]["inputs"]["session"], f"sessions/{name}", "overwrite")
    succeed(host, graph)
    return f"sessions/{name}.safetensors [output]"


def ways_on(graph: dict, memory: list, name: str) -> dict:
    """After a session: one turn more, a branch from after turn 2, and a turn by the host's own samplers."""
    graph["on"] = turn(memory, "make it green", seed=30)
    graph["back"] = node("AnchorEditRewind", session=memory, turn=2)
    graph["branch"] = turn(["back", 0], "make it black and white", seed=30)
    native_turn(graph, "native", ["tiny", 0], memory, "add a hat")
    for way in ("on", "branch"):
        graph[f"probe_{way}"] = probe(f"{name}_{way}", session=[way, 0], image=[way, 1])
    graph["probe_native"] = probe(f"{name}_native", session=["native", 0])
    return graph


@pytest.mark.parametrize("history", ["stream", "refresh"])
def test_another_process_goes_on_with_a_session_bit_by_bit(host, elsewhere, image_file, history):
    lines = [*LINES, "", "make it red"]
    graph = turns_graph(lines, "unsaved", seed=30)
    graph["policy"] = policy(window=2, history=history)
    graph["start"]["inputs"]["policy"] = ["policy", 0]
    graph["save"] = save(["turn5", 0], f"carried/{history}", "overwrite")
    run = succeed(host, ways_on(graph, ["turn5", 0], "unsaved"))
    (file,) = run.outputs["save"]["sessions"]
    assert file == {"filename": f"{history}.safetensors", "subfolder": "carried", "type": "output"}
    assert f"output/carried/{history}.safetensors" in dict(run.texts)["save"]

    path = host.folder / "output" / "carried" / file["filename"]
    shutil.copy(path, elsewhere.folder / "input")
    run = succeed(elsewhere, ways_on(loaded_graph(path.name), ["load", 0], "loaded"))
    for way in ("on", "branch", "native"):
        before, after = read(host, f"unsaved_{way}"), read(elsewhere, f"loaded_{way}")
        assert before.keys() == after.keys()
        for what in before:
            assert before[what].equal(after[what]), (way, what)

    # whoever needs the session first reads it again, and shows how far it is
    first, text = next((name, text) for name, text in run.texts if text.startswith("Encoding"))
    total = int(text.split()[1])
    # streamed: all that the visible images have seen, which are three for the branch; refreshed: these alone, and
    # the source may be at hand from the other case
    assert total in {"stream": (6, 3), "refresh": (3, 2)}[history]
    shown = [(done, of) for name, done, of in run.progress if name == first]
    assert shown[: total + 1] == [(done, total) for done in range(total + 1)]


def test_a_session_is_saved_again_when_it_has_changed_and_then_only(host, image_file):
    def run(words: str, existing: str) -> tuple[bool, list[str]]:
        graph = turns_graph([words], "kept", seed=31)
        graph["save"] = save(["turn1", 0], "kept/%width%", existing)
        ran = "save" in succeed(host, graph).ran
        return ran, sorted(os.listdir(host.folder / "output" / "kept"))

    first, second = "128_00001_.safetensors", "128_00002_.safetensors"
    assert run("make it blue", "keep") == (True, [first])
    assert run("make it blue", "keep") == (False, [first])
    assert run("make it red", "keep") == (True, [first, second])
    assert run("make it red", "overwrite") == (True, ["128.safetensors", first, second])
    assert run("make it pink", "overwrite") == (True, ["128.safetensors", first, second])
    sessions = [load_session(host.folder / "output" / "kept" / name) for name in ("128.safetensors", first, second)]
    assert [memory.turns[1].instruction for memory in sessions] == ["make it pink", "make it blue", "make it red"]


def test_sessions_are_listed_and_a_changed_one_is_loaded_anew(host, image_file):
    name = saved_session(host, "listed", LINES[:2], seed=32)
    path = host.folder / "output" / "sessions" / "listed.safetensors"
    data, folder = path.read_bytes(), host.folder / "input" / "deep"
    folder.mkdir(exist_ok=True)
    (folder / "copy.safetensors").write_bytes(data)
    (folder / "empty.safetensors").write_bytes(b"")
    save_file({"weight": torch.zeros(2)}, folder / "weights.safetensors")
    torch.save({"latents": print}, folder / "code.safetensors")
    names = listed(host)
    assert {name, "deep/copy.safetensors"} <= set(names)
    assert not [other for other in names if other.startswith("deep/") and "copy" not in other]
    assert "listed.safetensors [output]" not in names  # which the probe wrote

    graph = loaded_graph(name) | {"watch": probe("watch", session=["load", 0], image=["load", 1])}
    run = succeed(host, graph)
    assert dict(run.texts)["load"] == f"128x128 pixels, turn 2: {LINES[1]}"
    assert len(read(host, "watch")["latents"]) == 3
    assert read(host, "watch")["image"][0].movedim(-1, 0).equal(load_image(image_file))
    assert "load" not in succeed(host, graph).ran
    save_session(load_session(path).rewind(1), path)
    assert "load" in succeed(host, graph).ran
    assert len(read(host, "watch")["latents"]) == 2


def test_a_file_that_is_no_session_is_refused_before_anything_runs(host, image_file):
    name = saved_session(host, "sound", LINES[:1], seed=33)
    whole = (host.folder / "output" / "sessions" / "sound.safetensors").read_bytes()
    outside = host.folder / "outside.safetensors"
    outside.write_bytes(whole)
    folder = host.folder / "input"
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save({"latents": print}, folder / "code.pt")
    save_file({"weight": torch.zeros(2)}, folder / "weights.safetensors")
    inside, again, choose = "Give a name inside them", "Use an earlier copy", "Press R and choose"
    refused = {
        "../outside.safetensors": inside,
        "../outside.safetensors [output]": inside,
        "sessions/../../outside.safetensors [output]": inside,
        "..\\outside.safetensors": inside,
        str(outside): inside,
        str(folder / "short.safetensors"): inside,
        "C:\\outside.safetensors": inside,
        "link.safetensors": inside,
        "": "Give a name, or folder/name",
        "nowhere.safetensors": choose,
        "drawing.png/nowhere": choose,
        "x" * 5000: choose,
        "sessions": choose,
        "short.safetensors": again,
        "empty.safetensors": again,
        "code.pt": again,
        "weights.safetensors": "Choose one that AnchorEdit saved",
    }
    for bad, remedy in refused.items():
        graph = loaded_graph(name) | {"sound": probe("taken", session=["load", 0]), "bad": load(bad)}
        graph["wanted"] = probe("wanted", session=["bad", 0])
        run = host.run(graph)
        assert list(run.refused) == ["bad"], bad
        (error,) = run.refused["bad"]["errors"]
        print(error["details"][:200])
        assert error["details"].startswith(f"file - {remedy}"), error["details"]
        assert run.error is None  # the other outputs are made all the same


def test_a_prefix_that_leads_out_of_the_output_folder_is_refused(host, image_file):
    (host.folder / "output" / "leads_out").symlink_to(host.folder / "models")
    before = {path for path in host.folder.rglob("*") if "output" not in path.parts}
    for number, prefix in enumerate(("../out", "a/../../out", "..\\out", str(host.folder / "out"), "C:\\out", "", ".")):
        for kind, writer in (("session", save(["start", 0], prefix)), ("export", export(["start", 0], prefix))):
            run = host.run(base_graph() | {kind: writer})
            assert run.error is not None and run.error["node_id"] == kind, prefix
            remedy = "Give a name" if number > 4 else "Give a name inside them"
            assert run.error["exception_message"].startswith(remedy)
    assert {path for path in host.folder.rglob("*") if "output" not in path.parts} == before


def test_a_session_of_another_latent_space_is_refused_where_the_vae_is_known(host, image_file):
    name = saved_session(host, "space", LINES[:1], seed=34)
    graph = loaded_graph(name, vae=["vae", 0])
    graph["vae"] = node("AnchorEditMisfitVAE", vae=["tiny", 2], kind="another")
    users = {
        "turn": turn(["load", 0], LINES[1]),
        "film": node("AnchorEditFilmstrip", session=["load", 0], size=96),
        "export": node("AnchorEditExportTurns", session=["load", 0], filename_prefix="nothing"),
    }
    for where, user in users.items():
        wanted = {"wanted": probe("wanted", session=[where, 0])} if where == "turn" else {}
        run = host.run(graph | {where: user} | wanted)
        assert run.error["node_id"] == where
        assert run.error["exception_message"].startswith("Use the model it was started with, VAE included")
    assert not list((host.folder / "output").glob("nothing*"))


def test_a_full_disk_leaves_the_old_file(host, image_file):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit another process")
    saved_session(host, "full", LINES[:1], seed=35)
    path = host.folder / "output" / "sessions" / "full.safetensors"
    before = path.read_bytes()
    # larger than the host's own log, which has to go on
    log = (host.folder / "server.log").stat().st_size
    words = "blue " * 400
    graph = turns_graph([LINES[0], words], "unused", seed=35)
    del graph["probe"]
    graph["save"] = save(["turn2", 0], "sessions/full", "overwrite")
    limits = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (log + 1_000_000, limits[1]))
    try:
        run = host.run(graph)
    finally:
        resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, limits)
    assert run.error["node_id"] == "save"
    print(run.error["exception_message"])
    assert run.error["exception_message"].startswith("Choose a folder that exists, is writable and has room")
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]
    assert succeed(host, graph).ran[-1] == "save"  # the turns are kept
    assert len(load_session(path)) == 3


def test_a_file_that_is_no_session_is_never_replaced(host, image_file):
    path = host.folder / "output" / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    before = path.read_bytes()
    run = host.run(base_graph() | {"save": save(["start", 0], "weights", "overwrite")})
    assert run.error["exception_message"].startswith("Choose another filename_prefix")
    assert path.read_bytes() == before


def test_exported_images_carry_their_workflow_and_settings(host, elsewhere, image_file):
    lines = ["make it blue", 'write "\u4f60\u597d" on it']
    graph = turns_graph(lines, "of_export", seed=36)
    graph["export"] = export(["turn2", 0], "exported/%height%")
    graph["strip"] = node("AnchorEditFilmstrip", session=["turn2", 0], size=96)
    graph["images"] = probe("images", image=["strip", 0])
    graph["save"] = save(["turn2", 0], "exported", "overwrite")
    workflow = {"nodes": [{"id": 1, "title": "\u6d4b\u8bd5"}], "version": 0.4}
    run = host.run(graph, workflow=workflow)
    shown = run.outputs["export"]["images"]
    assert [file["filename"] for file in shown] == [f"128_00001_turn_{number:03}.png" for number in range(3)]
    assert {(file["subfolder"], file["type"]) for file in shown} == {("exported", "output")}
    assert [done for name, done, _ in run.progress if name == "export"] == [0, 1, 2, 3]
    images = read(host, "images")["image"]
    turns = load_session(host.folder / "output" / "exported.safetensors").turns
    for number, file in enumerate(shown):
        with Image.open(host.folder / "output" / "exported" / file["filename"]) as image:
            assert image.tobytes() == to_pil(images[number].movedim(-1, 0)).tobytes()
            chunks = {name: json.loads(text) for name, text in image.text.items()}
        assert chunks["workflow"] == workflow
        for name, entry in chunks["prompt"].items():
            assert (entry["class_type"], entry["inputs"]) == (graph[name]["class_type"], graph[name]["inputs"])
        assert chunks["anchoredit"] == {
            "turn": number,
            "instruction": ["", *lines][number],
            "seed": 36 if number else None,
            "settings": turns[number].settings,
        }
    assert turns[1].settings["sampler"] == "renoise"

    graph["turn2"]["inputs"]["seed"] = 37  # another export
    again = host.run(graph).outputs["export"]["images"]
    assert [file["filename"] for file in again] == [f"128_00002_turn_{number:03}.png" for number in range(3)]

    plain = base_graph() | {"export": export(["start", 0], "plain")}
    plain["image"]["inputs"]["image"] = "example.png"
    (file,) = succeed(elsewhere, plain).outputs["export"]["images"]
    with Image.open(elsewhere.folder / "output" / file["filename"]) as image:
        assert not image.text


def test_a_session_is_loaded_under_another_policy(host, image_file):
    graph = turns_graph(LINES[:2], "before")
    graph["save"] = node("AnchorEditSaveSession", session=["turn2", 0], filename_prefix="moved", existing="overwrite")
    succeed(host, graph)
    loaded = {**base_graph(), "policy": policy(window=1, place="ram", kv_dtype="float8_e4m3fn")}
    loaded["load"] = load("moved.safetensors [output]", policy=["policy", 0])
    loaded["next"] = turn(["load", 0], LINES[2])
    loaded["probe"] = probe("moved", session=["next", 0])
    run = succeed(host, loaded)
    assert "rounded to float8_e4m3fn" in dict(run.texts)["next"]
    assert read(host, "moved")["latents"][:3].equal(read(host, "before")["latents"])


def test_a_loaded_session_says_which_network_it_lacks(host, image_file):
    """A file holds no model: to look at it the VAE is enough, and what an edit needs beside it is said by name."""
    name = saved_session(host, "bare", LINES[:1], seed=36)
    graph = {"tiny": node("AnchorEditLoadTiny"), "load": node("AnchorEditLoadSession", file=name)}
    film = node("AnchorEditFilmstrip", session=["load", 0], size=96)
    for given, lacking, user in (
        ((), "MODEL", turn(["load", 0], LINES[1])),
        (("model",), "CLIP", turn(["load", 0], LINES[1])),
        (("model", "clip"), "VAE", turn(["load", 0], LINES[1])),
        (("model", "clip"), "VAE", film),
    ):
        graph["load"]["inputs"] = {"file": name, **{network: NETWORKS[network] for network in given}}
        run = host.run(graph | {"user": user, "wanted": probe("wanted", image=["user", 1 if user != film else 0])})
        assert run.error["node_id"] == "user"
        assert f"The session has no {lacking}" in run.error["exception_message"]
    graph["load"]["inputs"] = {"file": name, "vae": NETWORKS["vae"]}
    succeed(host, graph | {"user": film})
