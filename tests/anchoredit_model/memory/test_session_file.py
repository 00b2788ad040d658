"""A session survives the disk bit for bit; a damaged file says so; a failed save leaves the old file."""

from __future__ import annotations

import errno
import json
import os
import random as chance
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anchoredit_model.config import KVCacheConfig, MemoryPolicy
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.geometry import fit_into
from anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from anchoredit_model.memory.session_file import VERSION, begins_as_session, check_session, load_session, save_session

HEADER = "anchoredit_session"
KILLS = 50
# For every line of its input: a child that saves two sessions alternately until it is killed.
SAVING = """
import os, sys, torch
from anchoredit_model.memory.session_file import load_session, save_session
torch.set_num_threads(1)  # a forked child has no others
path, *files = sys.argv[1:]
sessions = [load_session(file) for file in files]
for _ in sys.stdin:
    child = os.fork()
    while child == 0:
        for session in sessions:
            save_session(session, path)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bytes_image(height: int = 30, width: int = 50) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.fixture
def memory() -> AnchorMemory:
    """Five turns with everything that a turn can have; turns 2 and 3 share their mask."""
    mask = (random(1, 30, 50) > 0).float()
    anchor = AnchorMemory.start(
        random(16, 4, 8),
        random(1, 24),
        bytes_image(),
        fit_into(30, 50, 32, 64),
        MemoryPolicy(2, 3, "refresh"),
        KVCacheConfig("cpu", "bfloat16"),
        "vae",
    )
    turns = (
        Turn(
            random(16, 4, 8, seed=1),
            'say "hi" \\ \u628a\u5706\u5708\u53d8\u6210\u7ea2\u8272 \U0001f3a8\n\tnext',
            random(7, 24),
            7,
            {"timesteps": [1000, 500]},
        ),
        Turn(random(16, 4, 8, seed=2), "", random(1, 24), -(10**40), {"cfg": 2.5, "sampler": "euler"}, mask),
        Turn(random(16, 4, 8, seed=3), "x" * 10_000, random(512, 24), 2**64, {}, mask),
        Turn(random(16, 4, 8, seed=4), "soft", random(3, 24), 0, {}, random(1, 30, 50).sigmoid()),
    )
    for turn in turns:
        anchor = anchor.commit(turn, "model float32 cpu")
    return anchor


def assert_same(left: AnchorMemory, right: AnchorMemory) -> None:
    for name in ("geometry", "policy", "kv_cache", "latent_space", "model"):
        assert getattr(left, name) == getattr(right, name)
    assert torch.equal(left.image, right.image) and left.image.dtype == right.image.dtype == torch.float32
    assert len(left) == len(right)
    for a, b in zip(left.turns, right.turns):
        assert (a.instruction, a.seed, a.settings) == (b.instruction, b.seed, b.settings)
        assert a.policy == b.policy
        assert torch.equal(a.latent, b.latent) and torch.equal(a.text, b.text)
        assert (a.mask is None) == (b.mask is None) and (a.mask is None or torch.equal(a.mask, b.mask))


def rewritten(path, change=None, tensors=None, **header):
    """The session at `path` with fields of its header set, or changed by `change`, or with other tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[HEADER])
    if change:
        change(content)
    save_file({**load_file(path), **(tensors or {})}, path, {HEADER: json.dumps({**content, **header})})
    return path


def said(path) -> str:
    """Return the one line that refuses the file."""
    with pytest.raises(AnchorEditError) as caught:
        load_session(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    try:
        check_session(path)  # the errors that it finds have the same words
    except AnchorEditError as error:
        assert str(error) == str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- there and back


def test_session_round_trips_through_its_file(memory, tmp_path):
    path = tmp_path / "\u4f1a\u8bdd one.safetensors"
    save_session(memory, path)
    loaded = load_session(path)
    assert_same(loaded, memory)
    assert begins_as_session(path)
    save_session(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    save_session(memory.rewind(0), str(path))  # replaces
    assert_same(load_session(str(path)), memory.rewind(0))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.safetensors", path.name]


def test_images_are_stored_exactly_and_as_bytes_where_possible(memory, tmp_path):
    fine = torch.rand(3, 30, 50, generator=torch.Generator().manual_seed(0))
    outside = fine * 3 - 1
    holes = fine.clone()
    holes[0, 0, 0] = 1.5
    for image, dtype in ((memory.image, torch.uint8), (fine, torch.float32), (outside, torch.float32)):
        save_session(replace(memory, image=image), tmp_path / "s.safetensors")
        assert load_file(tmp_path / "s.safetensors")["image"].dtype == dtype
        assert torch.equal(load_session(tmp_path / "s.safetensors").image, image)
    transposed = bytes_image(50, 30).transpose(1, 2)  # as numpy and Pillow hand them over: not contiguous
    save_session(replace(memory, image=transposed), tmp_path / "s.safetensors")
    assert torch.equal(load_session(tmp_path / "s.safetensors").image, transposed)


def test_a_shared_mask_is_stored_once(memory, tmp_path):
    save_session(memory, tmp_path / "s.safetensors")
    tensors = load_file(tmp_path / "s.safetensors")
    assert tensors["mask_0"].dtype == torch.uint8 and tensors["mask_1"].dtype == torch.float32 and len(tensors) == 5
    loaded = load_session(tmp_path / "s.safetensors")
    assert loaded.turns[2].mask is loaded.turns[3].mask


@pytest.mark.slow
def test_loaded_session_continues_bit_exactly(small_model, tmp_path):
    from anchoredit_model.pipeline import AnchorEditPipeline

    image, mask = bytes_image(64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 8:50] = 1
    pipeline = AnchorEditPipeline.from_pretrained(small_model)
    memory = pipeline.start(image, MemoryPolicy(1, 1))
    for words in ("make it red", "add a star"):
        memory = pipeline.turn(memory, words, np.int64(7), cfg=np.float32(2), mask=mask)
        save_session(memory, tmp_path / "s.safetensors")
    one = pipeline.turn(memory, "move it left", 7)

    other = AnchorEditPipeline.from_pretrained(small_model)
    loaded = load_session(tmp_path / "s.safetensors")
    assert_same(loaded, memory)
    again = other.turn(loaded, "move it left", 7)
    assert_same(again, one)
    for turn in range(4):
        assert torch.equal(other.image(again, turn), pipeline.image(one, turn))


def test_replacing_a_file_does_not_change_a_loaded_session(memory, tmp_path):
    path = tmp_path / "s.safetensors"
    save_session(memory, path)
    loaded = load_session(path)
    path.write_bytes(bytes(path.stat().st_size))  # in place, which a mapped tensor would show
    assert_same(loaded, memory)


# ---------------------------------------------------------------- files that are not sessions


def test_a_cut_file_is_refused_at_any_length(memory, tmp_path):
    path = tmp_path / "s.safetensors"
    save_session(memory, path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for length in (1, 7, 8, 9, 8 + header // 2, 7 + header, 8 + header, 9 + header, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged" in said(path)
    path.write_bytes(whole + b"\0")
    assert "damaged" in said(path)


def test_other_files_are_refused(memory, tmp_path):
    path = tmp_path / "s.safetensors"
    assert "does not exist" in said(path)
    assert "is a folder" in said(tmp_path)
    for content in (b"", b"not a session, but a text that is long enough\n" * 9, bytes(range(256)) * 2, b"\x80\x04N."):
        path.write_bytes(content)
        assert "damaged" in said(path)
        assert not begins_as_session(path)
    save_file({"weight": torch.zeros(2)}, path)
    assert not begins_as_session(path)
    assert "is not a session file" in said(path)


def test_another_format_says_what_to_do(memory, tmp_path):
    save_session(memory, tmp_path / "s.safetensors")
    newer = rewritten(tmp_path / "s.safetensors", lambda header: header.clear(), version=VERSION + 1)
    assert said(newer).endswith(f"has format {VERSION + 1}, this program reads {VERSION}. Update AnchorEdit.")


def test_sessions_from_before_the_first_release_are_refused(memory, tmp_path):
    """Version 1 kept device and dtype of the K/V in the policy, and the settings of turns under other names."""

    def version_1(header: dict) -> None:
        header["version"] = 1
        cache = header.pop("kv_cache")
        for policy in (header["policy"], *(turn["policy"] for turn in header["turns"] if turn["policy"])):
            policy |= {"place": "ram", "kv_dtype": cache["dtype"]}

    save_session(memory, tmp_path / "s.safetensors")
    refusal = said(rewritten(tmp_path / "s.safetensors", version_1))
    assert "has format 1 of a version before the first release. Start a new session" in refusal


DAMAGE = {
    "no turns": lambda header: header.update(turns=[]),
    "a turn missing": lambda header: header["turns"].pop(),
    "a turn too many": lambda header: header["turns"].append(header["turns"][-1]),
    "turns that are a number": lambda header: header.update(turns=3),
    "turns that are names": lambda header: header.update(turns=["a"] * 5),
    "no policy": lambda header: header.pop("policy"),
    "an empty policy list": lambda header: header.update(policy=[]),
    "an unknown policy": lambda header: header["policy"].update(weight=3),
    "no cache settings": lambda header: header.pop("kv_cache"),
    "impossible cache settings": lambda header: header["kv_cache"].update(device="ram"),
    "an impossible policy": lambda header: header["policy"].update(window=-1),
    "half a frame in the window": lambda header: header["policy"].update(window=1.5),
    "no geometry": lambda header: header.pop("geometry"),
    "an impossible geometry": lambda header: header["geometry"].update(work_height=0),
    "another geometry": lambda header: header["geometry"].update(input_height=31),
    "another work size": lambda header: header["geometry"].update(work_height=64),
    "no version": lambda header: header.pop("version"),
    "a version that is not a number": lambda header: header.update(version="one"),
    "an instruction that is a list": lambda header: header["turns"][1].update(instruction=[]),
    "a seed that is a text": lambda header: header["turns"][1].update(seed="7"),
    "settings that are none": lambda header: header["turns"][1].update(settings=None),
    "a mask that is missing": lambda header: header["turns"][1].update(mask="mask_9"),
    "too few rows": lambda header: header["turns"][1].update(text_rows=6),
    "negative rows": lambda header: header["turns"][1].update(text_rows=-1),
    "huge rows": lambda header: header["turns"][1].update(text_rows=10**30),
    "a fingerprint that is none": lambda header: header.update(model=None),
    "nothing": lambda header: header.clear(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_header_is_refused(memory, tmp_path, damage):
    save_session(memory, tmp_path / "s.safetensors")
    rewritten(tmp_path / "s.safetensors")  # whole as it is
    assert_same(load_session(tmp_path / "s.safetensors"), memory)
    assert "damaged" in said(rewritten(tmp_path / "s.safetensors", damage))


def test_flipped_bits_never_crash_the_reader(memory, tmp_path):
    path = tmp_path / "s.safetensors"
    save_session(memory.rewind(1), path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    for position in range(0, end, 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            load_session(path)
        except AnchorEditError as error:
            assert "\n" not in str(error)


def test_a_header_that_is_not_an_object_is_refused(memory, tmp_path):
    path = tmp_path / "s.safetensors"
    for text in ("", "{", "[]", "null", "3", "[" * 100_000, '{"version": 1' + "0" * 5000 + "}"):
        save_file({"latents": torch.zeros(1)}, path, {HEADER: text})
        assert "damaged" in said(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(5)},
        {"latents": torch.tensor(1.0)},
        {"latents": torch.zeros(5, 16, 8, 4)},
        {"text": torch.zeros(2, 24)},
        {"text": torch.tensor(1.0)},
        {"image": torch.zeros(3, 30, 51)},
        {"image": torch.zeros(4, 30, 50)},
        {"mask_0": torch.zeros(1, 50, 30)},
    ],
)
def test_inconsistent_tensors_are_refused(memory, tmp_path, tensors):
    save_session(memory, tmp_path / "s.safetensors")
    assert "damaged" in said(rewritten(tmp_path / "s.safetensors", tensors=tensors))


# ---------------------------------------------------------------- writing


def test_full_disk_leaves_the_old_file(memory, tmp_path, largest_file):
    path = tmp_path / "s.safetensors"
    save_session(memory.rewind(1), path)
    before = path.read_bytes()
    for size in (0, 100, len(before) - 1):
        with largest_file(size), pytest.raises(AnchorEditError, match="cannot be written .*has room") as caught:
            save_session(memory, path)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_replacement_leaves_the_old_file(memory, tmp_path, monkeypatch, error):
    path = tmp_path / "s.safetensors"
    save_session(memory.rewind(1), path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else AnchorEditError):
        save_session(memory, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_while_saving_leaves_the_old_or_the_new_file(memory, tmp_path):
    # with 10 MB of latents, so that most of the time is spent on writing
    large = replace(memory, turns=tuple(replace(turn, latent=random(16, 128, 256)) for turn in memory.turns))
    path, files = tmp_path / "s.safetensors", [tmp_path / "old.safetensors", tmp_path / "new.safetensors"]
    sessions = [large.rewind(2), large]
    for file, session in zip(files, sessions):
        save_session(session, file)
    began = time.monotonic()
    save_session(sessions[0], path)
    longest = 8 * (time.monotonic() - began)
    found, moments = [], chance.Random(0)
    command = [sys.executable, "-c", SAVING, path, *reversed(files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saving:
        for _ in range(KILLS):
            print(file=saving.stdin, flush=True)
            child = int(saving.stdout.readline())
            time.sleep(moments.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            saving.stdout.readline()
            loaded = load_session(path)
            assert_same(loaded, sessions[len(loaded) == len(large)])
            found.append(len(loaded))
        saving.stdin.close()
    unfinished = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    print(f"turns found after {KILLS} kills: {found}; {len(unfinished)} came while the file was written")
    assert unfinished, "no kill came while a file was written"


def test_paths_that_cannot_be_written(memory, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "s.safetensors", tmp_path / "file" / "s.safetensors", tmp_path / "folder"):
        with pytest.raises(AnchorEditError, match="cannot be written"):
            save_session(memory, path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_file_mode_follows_the_umask(memory, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_session(memory, tmp_path / "s.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s.safetensors").stat().st_mode) == 0o666 & ~umask
