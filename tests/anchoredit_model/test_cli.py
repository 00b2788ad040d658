"""The command line: what it writes and prints, and one line for everything that a user can get wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anchoredit_model.filmstrip
from anchoredit_model import cli
from anchoredit_model.cli import main
from anchoredit_model.filmstrip import filmstrip
from anchoredit_model.images import load_image
from anchoredit_model.memory.session_file import load_session
from anchoredit_model.pipeline import AnchorEditPipeline

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def photo(tmp_path) -> Path:
    """An image of 56x40 pixels."""
    Image.fromarray(NOISE).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def edit(small_model, capsys):
    """Run `edit` with one step a turn; return the exit code and the lines of stdout and stderr."""

    def run(*arguments, model=small_model, steps=1) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        with stderr_of_libraries() as beneath:
            code = main(["edit", "--model", str(model), "--steps", str(steps), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines() + beneath

    return run


@contextmanager
def stderr_of_libraries() -> Iterator[list[str]]:
    """Collect what C code writes to the process's stderr; the lines are there after the block."""
    lines: list[str] = []
    read, write = os.pipe()
    kept = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    try:
        yield lines
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        with os.fdopen(read, errors="replace") as pipe:
            lines.extend(pipe.read().splitlines())


@pytest.fixture
def refused(edit, tmp_path):
    """Run `edit`, which must fail in one line that holds the given words, with nothing on the disk changed."""

    def run(*arguments, says: tuple[str, ...], **options) -> None:
        before = files(tmp_path)
        code, out, err = edit(*arguments, **options)
        assert code == 2 and len(err) == 1 and err[0].startswith("error: "), (code, err)
        assert [word for word in says if word not in err[0]] == [], err[0]
        assert files(tmp_path) == before

    return run


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory) -> Path:
    """A folder after two turns; read-only."""
    folder = tmp_path_factory.mktemp("finished")
    Image.fromarray(NOISE).save(folder / "photo.png")
    words = ["-i", "make it red", "-i", "add a star"]
    code = main(
        ["edit", f"{folder}/photo.png", *words, "--out", f"{folder}/out", "--model", str(small_model), "--steps", "1"]
    )
    assert code == 0
    return folder / "out"


@pytest.fixture
def earlier(finished, tmp_path) -> Path:
    """A copy of that folder to continue in."""
    return Path(shutil.copytree(finished, tmp_path / "earlier"))


# ---------------------------------------------------------------- what it does


def test_a_chain_of_turns(edit, photo, tmp_path):
    out_folder = tmp_path / "new" / "out"
    code, out, err = edit(
        photo, "-i", "make it red", "-i", "add\n a \u661f", "-i", "move it left", "--out", out_folder, "--seed", 5
    )
    assert (code, err) == (0, [])
    names = ["filmstrip.png", "session.safetensors", "turn_00.png", "turn_01.png", "turn_02.png", "turn_03.png"]
    assert sorted(file.name for file in out_folder.iterdir()) == names
    assert out[0].startswith("works at 64x64 (input 56x40") and len(out) == 4
    assert out[2].startswith("turn 2/3 ") and out[2].endswith(
        "turn_02.png  add a \u661f"
    )  # one line, however it was typed

    assert np.array_equal(np.asarray(Image.open(out_folder / "turn_00.png")), NOISE)
    memory = load_session(out_folder / "session.safetensors")
    assert [turn.instruction for turn in memory.turns] == ["", "make it red", "add\n a \u661f", "move it left"]
    assert [turn.seed for turn in memory.turns] == [None, 5, 5, 5]
    for number, turn in enumerate(memory.turns):
        with Image.open(out_folder / f"turn_{number:02d}.png") as image:
            assert image.size == (56, 40) and image.text["instruction"] == turn.instruction


def test_stdout_holds_only_json(edit, photo, tmp_path):
    words = 'say "hi" \\ \u628a\u5706\u5708\u53d8\u6210\u7ea2\u8272 \U0001f3a8\nnext'
    code, out, err = edit(photo, "-i", words, "-i", " ", "--out", tmp_path / "out", "--json")
    assert code == 0 and len(out) == 2 and len(err) == 1
    rows = [json.loads(line) for line in out]
    assert [set(row) for row in rows] == [{"turn", "instruction", "seconds", "image"}] * 2
    assert [row["turn"] for row in rows] == [1, 2] and [row["instruction"] for row in rows] == [words, ""]
    assert all(row["seconds"] >= 0 and Image.open(row["image"]).size == (56, 40) for row in rows)
    assert err[0].startswith("note: the instruction is empty: a null edit")


@pytest.mark.slow
@pytest.mark.parametrize("own_folder", [True, False])
def test_continued_session_equals_an_uninterrupted_one(edit, photo, tmp_path, own_folder):
    words = ["make it red", "add a star", "move it left", "make it blue"]
    options = ["--seed", 9, "--window", 1, "--cfg", 2]
    asked = [part for word in words for part in ("-i", word)]
    assert edit(photo, *asked, "--out", tmp_path / "whole", *options, steps=2)[0] == 0
    first = tmp_path / "first"
    assert edit(photo, *asked[:4], "--out", first, *options, steps=2)[0] == 0
    rest = first if own_folder else tmp_path / "rest"
    # seed and policy are the session's own
    session = ("--session", first / "session.safetensors")
    assert edit(*session, *asked[4:], "--out", rest, "--cfg", 2, steps=2)[0] == 0
    assert files(rest) == files(tmp_path / "whole")


def test_earlier_images_stay_as_they_are(edit, earlier):
    (earlier / "turn_01.png").write_bytes(b"retouched")
    (earlier / "turn_02.png").unlink()
    assert edit("--session", earlier / "session.safetensors", "-i", "on", "--out", earlier)[0] == 0
    assert (earlier / "turn_01.png").read_bytes() == b"retouched" and (earlier / "turn_02.png").exists()


def test_policy_options_change_a_session(edit, earlier, tmp_path):
    options = ["--window", 1, "--anchor-frames", 2, "--history", "refresh"]
    edit("--session", earlier / "session.safetensors", "-i", "on", "--out", tmp_path / "out", *options)
    policy = load_session(tmp_path / "out" / "session.safetensors").policy
    assert (policy.window, policy.anchor_frames, policy.history) == (1, 2, "refresh")


def test_pixels_outside_the_mask_are_unchanged(edit, photo, tmp_path):
    mask = np.zeros((40, 56), dtype=np.uint8)
    mask[10:20, 5:30] = 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    assert edit(photo, "-i", "red", "-i", "blue", "--out", out, "--mask", tmp_path / "mask.png")[0] == 0
    for name in ("turn_01.png", "turn_02.png"):
        image = np.asarray(Image.open(out / name))
        assert np.array_equal(image[mask == 0], NOISE[mask == 0]) and not np.array_equal(image, NOISE)
    assert load_file(out / "session.safetensors")["mask_0"].dtype == torch.uint8
    assert load_session(out / "session.safetensors").turns[1].mask.max() == np.float32(200 / 255)


def test_resolution_and_sampler_are_passed_on(edit, photo, tmp_path):
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert edit(photo, "-i", "red", "--out", plain, steps=2)[0] == 0
    code, out, err = edit(photo, "-i", "red", "--out", other, "--resolution", 128, "--sampler", "euler", steps=2)
    assert (code, err) == (0, []) and out[0].startswith("works at 128x128 (input 56x40")
    turn = load_session(other / "session.safetensors").turns[1]
    assert turn.latent.shape[-2:] == (16, 16)
    assert turn.settings == {"sampler": "euler", "num_steps": 2, "cfg": 1.0}
    assert load_session(plain / "session.safetensors").turns[1].settings["sampler"] == "renoise"


def test_sheet_shows_every_image(edit, earlier, tmp_path):
    """It is drawn from thumbnails, those of earlier runs included, as if every image were still at hand."""
    assert edit("--session", earlier / "session.safetensors", "-i", "on", "--out", tmp_path / "out")[0] == 0
    images = [load_image(tmp_path / "out" / f"turn_{turn:02d}.png") for turn in range(4)]
    sheet = filmstrip(images, ["make it red", "add a star", "on"])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "filmstrip.png")), np.asarray(sheet))


def test_images_held_do_not_grow_with_the_session(edit, photo, tmp_path, monkeypatch):
    """The newest one, which a masked turn is put into, and no turn is decoded twice."""
    made = AnchorEditPipeline.image
    decoded, alive = [], []

    def watched(self, memory, turn=None, before=None):
        assert turn == 0 or before is not None
        image = made(self, memory, turn, before)
        alive[:] = [reference for reference in alive if reference() is not None]
        if turn:  # turn 0 is the session's own source image
            decoded.append(turn)
            alive.append(weakref.ref(image))
            assert len(alive) <= 2  # this one and the one before
        return image

    monkeypatch.setattr(AnchorEditPipeline, "image", watched)
    assert edit(photo, *FIVE, "--out", tmp_path / "out")[0] == 0
    assert decoded == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", [-1, 2**63, -(10**30), 10**100])
def test_any_whole_number_is_a_seed(edit, photo, tmp_path, seed):
    assert edit(photo, "-i", "red", "--out", tmp_path / "out", f"--seed={seed}")[0] == 0
    assert load_session(tmp_path / "out" / "session.safetensors").turns[1].seed == seed


def test_a_seed_too_long_to_read_is_a_usage_error(photo, tmp_path, capsys):
    for seed in ("9" * 5000, "1.5", "seven", ""):
        with pytest.raises(SystemExit) as stop:
            main(["edit", str(photo), "-i", "red", "--out", str(tmp_path / "out"), f"--seed={seed}"])
        assert stop.value.code == 2 and "--seed" in capsys.readouterr().err


@pytest.mark.slow
def test_unusual_instructions_are_accepted(edit, photo, tmp_path):
    words = [
        "\"quotes\" 'and' \\ $HOME `x`",
        "x" * 10_000,
        "\U0001f3a8\U0001f469\u200d\U0001f3a8",
        "\x1b[31m\x07\u202e\ufeff",
        "-leading",
    ]
    asked = [f"--instruction={word}" for word in words]
    code, out, err = edit(photo, *asked, "--out", tmp_path / "out")
    assert (code, err) == (0, []) and len(out) == 1 + len(words)
    memory = load_session(tmp_path / "out" / "session.safetensors")
    assert [turn.instruction for turn in memory.turns[1:]] == words
    for number, word in enumerate(words, 1):
        assert Image.open(tmp_path / "out" / f"turn_{number:02d}.png").text["instruction"] == word


def test_characters_the_terminal_cannot_encode_are_escaped(edit, photo, tmp_path, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert edit(photo, "-i", "\u7ea2\u8272", "--out", tmp_path / "\u56fe")[0] == 0
    assert rb"\u7ea2\u8272" in narrow.buffer.getvalue()


# ---------------------------------------------------------------- images and paths


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


IMAGES = {
    "one pixel": (lambda path: saved(Image.new("RGB", (1, 1), "red"), path / "a.png"), (1, 1)),
    "very wide": (lambda path: saved(Image.new("RGB", (20_000, 10), "red"), path / "a.png"), (20_000, 10)),
    "very tall": (lambda path: saved(Image.new("L", (3, 5000), 9), path / "a.png"), (3, 5000)),
    "grey": (lambda path: saved(Image.new("L", (9, 8), 7), path / "a.png"), (9, 8)),
    "CMYK": (lambda path: saved(Image.new("CMYK", (30, 20), (9, 80, 7, 6)), path / "a.jpg"), (30, 20)),
    "16 bit": (lambda path: saved(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), path / "a.png"), (30, 20)),
    "rotated by the camera": (lambda path: saved(Image.new("RGB", (30, 20)), path / "a.jpg", exif=rotated()), (20, 30)),
    "no extension": (lambda path: saved(Image.new("RGB", (30, 20)), path / "image", format="PNG"), (30, 20)),
    "spaces and Chinese": (
        lambda path: saved(Image.new("RGB", (30, 20)), path / "\u6211\u7684 \u56fe 'a'.png"),
        (30, 20),
    ),
}


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_kind(edit, tmp_path, kind):
    make, size = IMAGES[kind]
    source = make(tmp_path)
    out = tmp_path / "out \u6587\u4ef6\u5939 #1"
    code, _, err = edit(source, "-i", "red", "--out", out)
    assert (code, err) == (0, [])
    assert Image.open(out / "turn_00.png").size == Image.open(out / "turn_01.png").size == size
    shown = (load_image(source) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(out / "turn_00.png")), shown)


def test_transparency_is_logged(edit, tmp_path, caplog):
    source = saved(Image.new("RGBA", (30, 20), (255, 0, 0, 0)), tmp_path / "a.png")
    assert edit(source, "-i", "red", "--out", tmp_path / "out")[0] == 0
    assert Image.open(tmp_path / "out" / "turn_00.png").getpixel((0, 0)) == (255, 255, 255)
    assert "transparent in places" in caplog.text


def test_a_home_folder_is_expanded(edit, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert edit("~/photo.png", "-i", "red", "--out=~/out")[0] == 0
    assert (tmp_path / "out" / "turn_01.png").exists()


BAD_IMAGES = {
    "missing": (lambda path: path / "missing.png", "does not exist"),
    "a folder": (lambda path: path, "is a folder"),
    "below a file": (lambda path: path / "photo.png" / "a.png", "does not exist"),
    "empty": (lambda path: written(path / "a.png", b""), "not an image"),
    "text": (lambda path: written(path / "a.png", b"not an image" * 99), "not an image"),
    "cut short": (lambda path: written(path / "a.png", (path / "photo.png").read_bytes()[:-400]), "damaged"),
    "no header": (lambda path: written(path / "a.png", (path / "photo.png").read_bytes()[:20]), ""),
    "lines in its name": (lambda path: path / "a\nb\rc.png", "a\\nb\\nc.png"),
    "a name too long": (lambda path: path / ("a" * 300), "too long"),
    "too large": (lambda path: written(path / "a.png", header_of_png(10_000, 9000)), "10000x9000"),
    "a bomb": (lambda path: written(path / "a.png", header_of_png(60_000, 60_000)), "million pixels"),
}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says its size and ends there."""
    import zlib

    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("mask", [False, True])
def test_bad_images_and_masks(refused, photo, tmp_path, kind, mask):
    make, says = BAD_IMAGES[kind]
    bad = make(tmp_path)
    inputs = (photo, "--mask", bad) if mask else (bad,)
    name = str(bad).replace("\n", "\\n").replace("\r", "\\n")
    refused(*inputs, "-i", "red", "--out", tmp_path / "out", says=(says, name, ". "))
    assert not (tmp_path / "out").exists()


def test_bad_masks(refused, photo, earlier, tmp_path):
    small = saved(Image.new("L", (56, 41), 255), tmp_path / "small.png")
    black = saved(Image.new("RGB", (56, 40)), tmp_path / "black.png")
    for source in (
        (photo, "--out", tmp_path / "out"),
        ("--session", earlier / "session.safetensors", "--out", earlier),
    ):
        refused(*source, "-i", "red", "--mask", small, says=("mask is 56x41", "56x40", "Draw the mask"))
        refused(*source, "-i", "red", "--mask", black, says=("mask is black everywhere", "Paint white"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--window", -1], ("window must be a whole number, 0 or more, got -1", "Set")),
        (["--anchor-frames", -2], ("anchor_frames must be a whole number, 0 or more, got -2", "Set")),
        (["--anchor-frames", 0, "--window", 0], ("anchor_frames 0 with window 0", "Set one")),
        (["--cfg", "nan"], ("cfg must be a finite number, got nan", "Use 1")),
        (["--cfg", "inf"], ("cfg must be a finite number, got inf", "Use 1")),
        (["--cfg", "1e38", "--steps", 4], ("came out as NaN", "cfg 1e+38", "Lower")),
        (["--steps", 0], ("steps must be 1 to 1000, got 0", "Ask for")),
        (["--steps", -4], ("steps must be 1 to 1000, got -4", "Ask for")),
        (["--steps", 10**18], (f"steps must be 1 to 1000, got {10**18}", "Ask for")),
        (["--sampler", "ddim"], ("sampler must be one of renoise, euler, got 'ddim'", "Choose")),
        (["--sampler", "euler", "--steps", 0], ("steps must be 1 to 1000, got 0", "Ask for")),
        (["--model", "/nowhere/model"], ("'/nowhere/model' does not exist", "Give")),
        (["--model", "~nobody-here/model"], ("'~nobody-here/model' does not exist", "Give")),
    ],
)
def test_bad_options(refused, photo, earlier, tmp_path, options, says):
    for source in (
        (photo, "--out", tmp_path / "out"),
        ("--session", earlier / "session.safetensors", "--out", earlier),
    ):
        refused(*source, "-i", "red", *options, says=says)


@pytest.mark.parametrize("resolution", [-64, 1, 65])
def test_a_resolution_that_is_not_a_multiple_of_the_step(refused, photo, tmp_path, resolution):
    asked = ("--out", tmp_path / "out", "--resolution", resolution)
    refused(photo, "-i", "red", *asked, says=("resolution must be", f"got {resolution}", ". Use a multiple of 64"))


def test_resolution_cannot_change_for_a_session(refused, earlier):
    asked = ("--session", earlier / "session.safetensors", "-i", "red", "--out", earlier, "--resolution", 64)
    refused(*asked, says=("--resolution 64 cannot change the size of a session", "Leave --resolution out"))


def test_instruction_must_be_valid_unicode(refused, photo, tmp_path):
    """What is left of another encoding: a file may have such a name, but a PNG or session file cannot hold it."""
    refused(photo, "-i", "half \udc80", "--out", tmp_path / "out", says=("'half \\udc80' is not valid text", "UTF-8"))


def test_extreme_options_are_accepted(edit, photo, tmp_path):
    assert edit(photo, "-i", "red", "--out", tmp_path / "out", "--window", 10**18, "--cfg", -1)[0] == 0


def test_either_an_image_or_a_session_is_required(refused, photo, earlier, tmp_path):
    session = earlier / "session.safetensors"
    out = ("--out", tmp_path / "out")
    refused(photo, *out, says=("no instruction", '-i "'))
    refused(
        "-i", "red", *out, says=("exclude each other and one is needed", "Give an image to start from, or a session")
    )
    refused(photo, "--session", session, "-i", "red", *out, says=("exclude each other and one is needed",))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused(refused, photo, tmp_path):
    asked = (photo, "-i", "red", "--out", tmp_path / "out", "--device", "cuda")
    refused(*asked, says=("--device is cuda", "no CUDA", "Use --device cpu"))
    assert not (tmp_path / "out").exists()


def test_usage_errors_exit_as_argparse_does(photo, capsys):
    for wrong in (["--outt", "x"], ["--out", "x", "--steps", "two"], ["--out", "x", "--history", "x"], ["--out="], []):
        with pytest.raises(SystemExit) as stop:
            main(["edit", str(photo), "-i", "red", *wrong])
        assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


# ---------------------------------------------------------------- models


@pytest.mark.slow
def test_damaged_models_are_refused(refused, small_model, photo, tmp_path):
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    for name in files(small_model):
        if name == "model_index.json":  # for people and other programs
            continue
        whole = (model / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"<html>404</html>" * 9):
            (model / name).write_bytes(content)
            where = ("model", Path(name).parts[0])
            refused(photo, "-i", "red", "--out", tmp_path / "out", model=model, says=where)
        (model / name).unlink()
        if name != "transformer/config.json":  # the weights know their sizes
            refused(photo, "-i", "red", "--out", tmp_path / "out", model=model, says=("model",))
        (model / name).write_bytes(whole)
    shutil.rmtree(model / "text_encoder")
    refused(photo, "-i", "red", "--out", tmp_path / "out", model=model, says=("text_encoder",))


class Evil:
    """Code that a pickle would run."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_files_that_are_not_models_are_refused(refused, photo, tmp_path):
    marker = tmp_path / "the code was run"
    torch.save({"generator": Evil(str(marker))}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"generator": Evil(str(marker))}))
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "empty").mkdir()
    save_file({"lora_A": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    for name, says in (
        ("zip.pt", "could run code"),
        ("bare.pt", "could run code"),
        ("text.pt", "neither safetensors nor"),
        ("empty", "no .safetensors weights"),
        ("lora.safetensors", "lora.safetensors"),
        ("photo.png", "neither safetensors nor"),
    ):
        refused(photo, "-i", "red", "--out", tmp_path / "out", model=tmp_path / name, says=(name, says, ". "))
    assert not marker.exists()


# ---------------------------------------------------------------- sessions


def test_bad_sessions(refused, earlier, tmp_path):
    def on(session, *says, out=tmp_path / "out"):
        refused("--session", session, "-i", "red", "--out", out, says=(str(session), *says))

    whole = (earlier / "session.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    for length in (0, 5, 100, 1000, len(whole) - 1):
        bad.write_bytes(whole[:length])
        on(bad, "damaged", "Use an earlier copy")
    for version, remedy in ((1, "Start a new session"), (3, "Update AnchorEdit")):
        bad.write_bytes(whole.replace(b'\\"version\\": 2,', b'\\"version\\": %d,' % version))
        on(bad, f"format {version}", remedy)
    bad.write_bytes(b"a text\n" * 99)
    on(bad, "damaged")
    save_file({"weight": torch.zeros(2)}, bad)
    on(bad, "not a session file")
    on(tmp_path / "missing", "does not exist", "Check")
    on(earlier, "is a folder")
    on(tmp_path / ("a" * 300), "too long")
    assert not (tmp_path / "out").exists()


def test_a_session_of_another_model(edit, refused, small_model, earlier, tmp_path):
    """Another VAE or text encoder is refused before an image is touched; other weights are noted."""
    asked = ("--session", earlier / "session.safetensors", "-i", "on", "--out", earlier)
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(json.dumps({**config, "latents_mean": [0.5] * 16}))
    refused(*asked, model=model, says=("another VAE", "Use the model it was started with"))

    shutil.rmtree(model)
    shutil.copytree(small_model, model)
    pipeline = AnchorEditPipeline.from_pretrained(model)
    pipeline.backbone.transformer.head.head.bias.data += 0.1
    pipeline.save_pretrained(tmp_path / "tuned")
    code, _, err = edit(*asked, model=tmp_path / "tuned")
    assert code == 0 and len(err) == 1 and err[0].startswith("note: the session was made with another model")


# ---------------------------------------------------------------- the output folder


def test_folders_with_results_are_not_overwritten(refused, earlier, photo, tmp_path):
    refused(photo, "-i", "red", "--out", earlier, says=("already holds session.safetensors", "Choose another --out"))
    other = Path(shutil.copytree(earlier, tmp_path / "other"))
    asked = ("--session", other / "session.safetensors", "-i", "red", "--out", earlier)
    refused(*asked, says=("already holds session.safetensors", f"--session '{earlier}"))
    (earlier / "session.safetensors").unlink()
    refused(photo, "-i", "red", "--out", earlier, says=("already holds filmstrip.png", "Choose another --out"))
    (earlier / "filmstrip.png").unlink()
    refused(earlier / "turn_01.png", "-i", "red", "--out", earlier, says=("already holds turn_00.png",))


def test_other_files_in_the_folder_do_not_matter(edit, photo, tmp_path):
    (tmp_path / "turn_signal.png").write_text("mine")
    assert edit(photo, "-i", "red", "--out", tmp_path)[0] == 0
    assert (tmp_path / "turn_signal.png").read_text() == "mine"


def test_folders_that_cannot_be_written(refused, photo, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    paths = [photo, photo / "below", tmp_path / ("a" * 300), tmp_path / "loop"]
    if os.name == "posix":
        paths.append(Path("/proc/anchoredit"))
    for path in paths:
        refused(photo, "-i", "red", "--out", path, says=(f"'{path}'", "Choose another --out"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_may_not_be_written(refused, photo, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(photo, "-i", "red", "--out", closed, says=(str(closed), "Permission denied", "Choose another --out"))


def test_a_full_disk_keeps_what_is_finished(refused, edit, photo, earlier, tmp_path, largest_file):
    session = earlier / "session.safetensors"
    with largest_file(session.stat().st_size):
        refused(
            "--session", session, "-i", "on", "--out", earlier, says=("session.safetensors", "too large", "has room")
        )
    with largest_file(0):
        refused(photo, "-i", "red", "--out", tmp_path / "out", says=("cannot write in", "Choose another --out"))


def test_turn_is_kept_when_its_image_cannot_be_written(edit, photo, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "turn_02.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "out"
    code, lines, err = edit(photo, "-i", "red", "-i", "blue", "-i", "green", "--out", out)
    assert code == 2 and len(lines) == 2 and len(err) == 1
    assert err[0].startswith(f"error: image '{out / 'turn_02.png'}' cannot be written (No space left")
    monkeypatch.undo()
    assert edit("--session", out / "session.safetensors", "-i", "green", "--out", out)[0] == 0
    assert edit(photo, "-i", "red", "-i", "blue", "-i", "green", "--out", tmp_path / "whole")[0] == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["image", "filmstrip"])
def test_a_turn_is_saved_before_anything_is_drawn(edit, photo, tmp_path, monkeypatch, lacking):
    """Decoding or drawing may need more memory than there is: the sampled turn is not lost."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if lacking == "image":
            made = AnchorEditPipeline.image

            def failing(self, memory, turn=None, before=None):
                if turn == 2:
                    raise RuntimeError("CUDA out of memory. Tried to")
                return made(self, memory, turn, before)

            patch.setattr(AnchorEditPipeline, "image", failing)
        else:
            made_sheet = anchoredit_model.filmstrip.contact_sheet

            def failing_sheet(thumbnails, captions):
                if len(captions) == 2:
                    raise MemoryError
                return made_sheet(thumbnails, captions)

            patch.setattr(anchoredit_model.filmstrip, "contact_sheet", failing_sheet)
        code, _, err = edit(photo, *FIVE[:6], "--out", out)
    assert code == 2 and err[0].startswith("error: out of memory; finished turns are kept. Use")
    assert load_session(out / "session.safetensors").last == 2
    assert edit("--session", out / "session.safetensors", *FIVE[4:6], "--out", out)[0] == 0
    assert edit(photo, *FIVE[:6], "--out", tmp_path / "whole")[0] == 0
    assert files(out) == files(tmp_path / "whole")


# ---------------------------------------------------------------- stopping, and unexpected errors


def fails_in(turn: int, error: BaseException, monkeypatch) -> None:
    """Make a turn raise."""
    made = AnchorEditPipeline.turn

    def failing(self, memory, *args, **kwargs):
        if len(memory) == turn:
            raise error
        return made(self, memory, *args, **kwargs)

    monkeypatch.setattr(AnchorEditPipeline, "turn", failing)


FIVE = [part for word in ("red", "blue", "green", "white", "black") for part in ("-i", word)]


@pytest.mark.slow
def test_ctrl_c_keeps_finished_turns(edit, photo, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fails_in(3, KeyboardInterrupt(), patch)
        code, lines, err = edit(photo, *FIVE, "--out", out)
    assert code == 130 and len(lines) == 3 and err == ["stopped; finished turns are kept"]
    names = ["filmstrip.png", "session.safetensors", "turn_00.png", "turn_01.png", "turn_02.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert edit("--session", out / "session.safetensors", *FIVE[4:], "--out", out)[0] == 0
    assert edit(photo, *FIVE, "--out", tmp_path / "whole")[0] == 0
    assert files(out) == files(tmp_path / "whole")


def test_ctrl_c_in_the_first_turn_leaves_an_empty_folder(edit, photo, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fails_in(1, KeyboardInterrupt(), patch)
        assert edit(photo, *FIVE, "--out", tmp_path / "out")[0] == 130
    assert files(tmp_path / "out") == {}
    assert edit(photo, *FIVE, "--out", tmp_path / "out")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EIO, "Input/output error", "/a/b"), "cannot use '/a/b' (Input/output error)"),
        (OSError(errno.EIO, "Input/output error"), "cannot use a file or the standard output (Input/output error)"),
        (MemoryError(), "out of memory; finished turns are kept. Use"),
        (RuntimeError("CUDA out of memory. Tried\nto"), "out of memory; finished turns are kept. Use"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; finished turns are kept. Use"),
        (
            ModuleNotFoundError("No module named 'diffusers'"),
            "package is missing or too old (No module named 'diffusers')",
        ),
    ],
)
def test_runtime_failures_are_reported_in_one_line(edit, photo, tmp_path, monkeypatch, error, says):
    fails_in(2, error, monkeypatch)
    code, lines, err = edit(photo, *FIVE, "--out", tmp_path / "out")
    assert code == 2 and len(err) == 1 and err[0].startswith("error: ") and says in err[0]
    assert load_session(tmp_path / "out" / "session.safetensors").last == 1


def test_bugs_keep_their_traceback(edit, photo, tmp_path, monkeypatch):
    fails_in(1, RuntimeError("a bug"), monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        edit(photo, "-i", "red", "--out", tmp_path / "out")


def test_closed_stdout_pipe_is_reported_in_one_line(edit, photo, tmp_path, monkeypatch):
    """`| head -1`: one line, no traceback, not even when Python closes its stdout."""
    read, write = os.pipe()
    os.close(read)
    gone = io.TextIOWrapper(io.FileIO(write, "w"))
    monkeypatch.setattr(sys, "stdout", gone)
    code, _, err = edit(photo, "-i", "red", "-i", "blue", "--out", tmp_path / "out")
    assert code == 2 and len(err) == 1 and err[0].startswith("error: cannot use the standard output (Broken pipe)")
    assert load_session(tmp_path / "out" / "session.safetensors").last == 1
    gone.close()


@pytest.mark.slow
def test_exit_code_and_help_of_the_program(tmp_path):
    """`python -m anchoredit_model`: the exit code arrives, and help needs no torch."""
    program = [sys.executable, "-X", "importtime", "-m", "anchoredit_model"]
    done = subprocess.run(
        [*program, "edit", "--help"], capture_output=True, text=True, cwd=Path(cli.__file__).parents[1]
    )
    assert done.returncode == 0 and "--anchor-frames" in done.stdout and " torch\n" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "anchoredit_model", "edit", "x.png", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 2 and done.stderr.startswith("error: there is no instruction")
