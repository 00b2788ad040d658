"""Photos: every layout they come in, what is known of their turns, and a whole run that can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image, save_image, to_pil
from benchmark.__main__ import execute
from benchmark.suites.photo_sessions import PhotoTurn, default_photos, find_photos
from benchmark.suites.photos import PhotoSuite, references


def run(argv: list[str]) -> int:
    return execute(["run", *argv])


TURNS = ["make it darker", {"instruction": "make it as it was", "returns_to": 0}, ""]


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth, with a detail in it."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    smooth[:, height // 3 : height // 2, width // 3 : width // 2] *= 0.5
    return (smooth * 255).round() / 255


def put(folder: Path, files: dict) -> Path:
    """Writes images, texts, and everything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, torch.Tensor):
            to_pil(content).save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def asked(folder: Path) -> dict[str, list[str]]:
    return {session.name: [turn.instruction for turn in session.turns] for session in find_photos(folder)}


A, B = image(64, 96), image(96, 64, 1)


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": A, "b.png": B, "instructions.txt": "darker\nlighter\n"},
        {"a.png": A, "b.png": B, "instructions.json": ["darker", {"en": "lighter", "zh": "亮一点"}]},
        {"a.png": A, "b.png": B, "instructions.json": {"b.png": ["darker", "lighter"], "a.png": ["darker", "lighter"]}},
        {f"{n}/source.png": A for n in "ab"} | {f"{n}/any.json": {"edits": ["darker", "lighter"]} for n in "ab"},
        {"a/source.png": A, "b/source.png": B, "set.json": {n: {"turns": ["darker", "lighter"]} for n in "ab"}},
        {f"{n}/source.png": A for n in "ab"}
        | {"set.json": [{"id": n, "prompts": [{"prompt": "darker"}, {"text": "lighter"}]} for n in "ab"]},
    ],
    ids=["text", "list", "by name", "a file each", "a table", "rows"],
)
def test_layouts(tmp_path, files):
    assert asked(put(tmp_path, files)) == {"a": ["darker", "lighter"], "b": ["darker", "lighter"]}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no image in"),
        ({"a.png": A}, r"instructions.json' cannot be read .*List the instructions there"),
        ({"a.png": A, "instructions.json": "[1"}, "must be JSON"),
        ({"a.png": A, "instructions.json": []}, "has no list of instructions"),
        ({"a.png": A, "instructions.json": ["x", {"instruction": 3}]}, "turn 2 of .* has no instruction"),
        (
            {"a.png": A, "instructions.json": [{"instruction": "x", "returns_to": 1}]},
            "turn 1 of .* must return to an earlier turn, got 1. Give",
        ),
        (
            {"a.png": A, "instructions.json": [{"instruction": "x", "mask": "../m.png"}]},
            r"mask '\.\./m\.png' of turn 1 .* must be an image in",
        ),
        ({"a.png": A, "instructions.json": {"c.png": ["x"]}}, "names 'c.png', which is not in"),
        ({"a.png": A, "instructions.txt": ""}, "instructions.txt' is empty. Write a line"),
        ({"a/source.png": A, "a/1.json": ["x"], "b/1.json": ["x"]}, "b' has instructions but no source.png"),
        ({"a/source.png": A, "set.json": 5}, "has 0 JSON files"),
        ({"a/source.png": A}, "has 0 JSON files"),
        ({"a/source.png": A, "a/1.json": ["x"], "a/2.json": ["x"]}, "has 2 JSON files"),
    ],
)
def test_incomplete_photo_folders_are_refused(tmp_path, files, said):
    with pytest.raises(AnchorEditError, match=said):
        find_photos(put(tmp_path, files))


def test_known_attributes_of_a_turn():
    """By states: nothing asked keeps one, a return goes back to one, a mask leaves the rest of it."""
    left, right = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    left[:, :1], right[:, 3:] = True, True
    turns = [
        (PhotoTurn("a"), left),  # 1: the source, but on the left
        (PhotoTurn(""), None),  # 2: the same
        (PhotoTurn("b"), right),  # 3: nor on the right
        (PhotoTurn("c"), None),  # 4: anything
        (PhotoTurn(""), None),  # 5: image 4
        (PhotoTurn("d", returns_to=3), None),  # 6: as 3
        (PhotoTurn("e", returns_to=0), None),  # 7: the source
        (PhotoTurn("f"), ~left & False | True),  # 8: a mask of everything says nothing
    ]
    known = references([turn for turn, _ in turns], [mask for _, mask in turns])
    assert [None if k is None else k[0] for k in known] == [0, 0, 0, None, 4, 0, 0, None]
    wheres = [None if k is None or k[1] is None else k[1].bool().tolist()[0] for k in known]
    neither = [False, True, True, False]
    assert wheres == [[False, True, True, True], [False, True, True, True], neither, None, None, neither, None, None]


@pytest.mark.parametrize(
    ("size", "resolution", "fits"),
    [
        ((300, 451), 1024, (288, 448)),
        ((900, 300), 256, (432, 144)),
        ((400, 5000), 1024, (400, 1600)),
        ((64, 96), 1024, (64, 96)),
        ((99, 77), 0, (99, 77)),
    ],
)
def test_sources_keep_their_aspect_and_are_never_enlarged(tmp_path, size, resolution, fits):
    (session,) = find_photos(put(tmp_path, {"a.png": image(*size), "instructions.txt": "x"}))
    source = session.source(resolution)
    assert source.shape[-2:] == fits and torch.equal(source, (source * 255).round() / 255)


def test_a_list_that_ends_with_the_source_is_repeated(tmp_path):
    turns = ["darker", "a hat", {"instruction": "off", "returns_to": 1}, {"instruction": "back", "returns_to": 0}]
    photos = put(tmp_path, {"a.png": A, "b.png": B, "instructions.json": {"a.png": turns, "b.png": ["x", "y"]}})
    suite = PhotoSuite(find_photos(photos), "listed", 7, 64, {})
    first, second = suite.sessions
    assert [turn.instruction for turn in first.turns] == ["darker", "a hat", "off", "back", "darker", "a hat", "off"]
    assert [turn.returns_to for turn in first.turns] == [None, None, 1, 0, None, None, 5]
    assert len(second.turns) == 2
    with pytest.raises(AnchorEditError, match="turns must be at most the 2 that are listed, got 7. .* returns to 0"):
        PhotoSuite([second], "listed", 7, 64, {})


def test_the_default_set_comes_with_scikit_image():
    sessions = default_photos()
    assert len(sessions) == 6 and {len(session.turns) for session in sessions} == {12}
    for session in sessions:
        assert all(turn.returns_to == 0 for turn in session.turns[1::2])
        with Image.open(session.image) as image:
            assert min(image.size) >= 300


@pytest.mark.slow
def test_a_run_is_measured_and_can_be_read_back(tmp_path, capsys):
    """An editor's drift is found, also when its images are judged by another run; no-op shows none."""
    photos = put(tmp_path / "photos", {"cat.png": A, "dog.png": B, "instructions.json": TURNS})
    asked = ["--suite", "photos", "--photos", str(photos)]
    assert run([*asked, "--editor", "no-op", "--out", str(tmp_path / "idle")]) == 0
    idle = json.loads((tmp_path / "idle" / "report.json").read_text())
    assert [interval["mean"] for interval in idle["by_turn"]["change"]] == [0, 0, 0]
    assert [interval and interval["mean"] for interval in idle["by_turn"]["drift: l1"]] == [None, 0, 0]
    assert idle["absent"] == ["perceptual", "dino", "clip", "face"]
    assert "not measured, as no weights were given: perceptual, dino, clip, face" in capsys.readouterr().out

    made = tmp_path / "made"
    assert execute(["export", *asked, "--out", str(made)]) == 0
    assert json.loads((made / "cat" / "instructions.json").read_text()) == TURNS
    for name in ("cat", "dog"):
        source = load_image(made / name / "source.png")
        for turn, image_made in enumerate((source * 0.5, source * 0.75, source * 0.75), start=1):
            save_image(image_made, made / name / f"turn{turn}.png")
    by_hand = ["--editor", "folder", "--images", str(made)]
    assert run([*asked, *by_hand, "--out", str(tmp_path / "hand")]) == 0
    hand = json.loads((tmp_path / "hand" / "report.json").read_text())
    dl = [interval and interval["mean"] for interval in hand["by_turn"]["drift: dl"]]
    assert dl[0] is None and dl[1] == dl[2] < -5 and hand["by_turn"]["change"][0]["mean"] > 10

    again = ["--suite", "photos", "--photos", str(tmp_path / "hand" / "sessions")]  # a run is such a folder itself
    by_run = ["--editor", "folder", "--images", str(tmp_path / "hand" / "sessions")]
    assert run([*again, *by_run, "--out", str(tmp_path / "again")]) == 0
    repeated = json.loads((tmp_path / "again" / "report.json").read_text())
    assert repeated["by_turn"] == hand["by_turn"]
    assert execute(["compare", str(tmp_path / "idle"), str(tmp_path / "hand"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "photos, listed, 3 turns, 2 sessions" in page and "Session cat" in page and "success" not in page.lower()
    assert "Not measured, as no weights were given: perceptual, dino, clip, face." in page


def test_masks_follow_their_images(tmp_path):
    """A change inside the mask is no drift, one outside is."""
    source = image(64, 64)
    mask = torch.zeros(3, 64, 64)
    mask[:, :, :32] = 1
    turns = [{"instruction": "change the left", "mask": "m.png"}]
    photos = put(tmp_path / "photos", {"a.png": source, "m.png": mask, "instructions.json": turns})
    made = tmp_path / "made"
    assert execute(["export", "--suite", "photos", "--photos", str(photos), "--out", str(made)]) == 0
    assert torch.equal(load_image(made / "a" / "m.png"), mask)
    for name, part in (("inside", slice(0, 24)), ("outside", slice(40, 64))):
        edited = source.clone()
        edited[:, :, part] = 1 - edited[:, :, part]
        save_image(edited, made / "a" / "turn1.png")
        asked = ["--suite", "photos", "--photos", str(made), "--editor", "folder", "--images", str(made)]
        assert run([*asked, "--out", str(tmp_path / name)]) == 0
    l1 = {
        name: json.loads((tmp_path / name / "report.json").read_text())["by_turn"]["drift: l1"][0]["mean"]
        for name in ("inside", "outside")
    }
    assert l1["inside"] == 0 and l1["outside"] > 0.1
    again = str(tmp_path / "outside" / "sessions")  # a run keeps the masks beside its images
    asked = ["--suite", "photos", "--photos", again, "--editor", "folder", "--images", again]
    assert run([*asked, "--out", str(tmp_path / "again")]) == 0
    repeated = json.loads((tmp_path / "again" / "report.json").read_text())
    assert repeated["by_turn"]["drift: l1"][0]["mean"] == l1["outside"]
    put(tmp_path / "photos", {"m.png": mask[:, :32]})
    with pytest.raises(AnchorEditError, match="mask .* must be 64x64 as its image, got 64x32"):
        run(["--suite", "photos", "--photos", str(photos), "--editor", "no-op", "--out", str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--protocol", "undo"], "protocol 'undo' needs drawn scenes. With photos use listed or no-op"),
        (["--editor", "oracle"], "the correct edit of a photo is not known"),
        (["--size", "64"], "suite 'photos' does not take --size 64"),
        (["--sessions", "9"], "must be 1 to 1, got 9"),
        (["--turns", "0"], "turns must be 1 or more, got 0"),
        (["--dino", "nowhere"], "--dino must be a folder, got 'nowhere'"),
    ],
)
def test_incompatible_options_are_refused(tmp_path, options, said):
    photos = put(tmp_path / "photos", {"a.png": A, "instructions.txt": "x"})
    with pytest.raises(AnchorEditError, match=said):
        run(["--suite", "photos", "--photos", str(photos), "--out", str(tmp_path / "out"), *options])
    with pytest.raises(AnchorEditError, match="suite 'studio' does not take --resolution 512"):
        run(["--resolution", "512", "--out", str(tmp_path / "out")])
