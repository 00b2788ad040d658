"""Shards: written sessions are read back; broken ones are reported, and the others are read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anchoredit_model.config import EditConfig
from anchoredit_model.errors import AnchorEditError
from train.__main__ import main
from train.config import DataConfig, PretrainConfig
from train.data.latent_cache import Encoders
from train.data.procedural import ProceduralConfig, studio_parts
from train.data.session import REMEDIES, EditSession, Problems, WorkSizes
from train.data.shards import ShardPart, StoredSession, key_of, shard_parts, store, to_jpeg, write_shards
from train.data.source import open_source

GOOD = ("first", "second", "third", "last")


def image(seed: int, width: int = 16, height: int = 8, kind: str = "JPEG") -> bytes:
    """A flat image, which JPEG hardly changes."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (seed * 37 % 256, seed * 91 % 256, 128)).save(stream, kind, quality=95)
    return stream.getvalue()


def files_of(key: str, turns: int = 2) -> dict[str, bytes]:
    files = {f"{key}.{turn}.jpg": image(turn) for turn in range(turns + 1)}
    texts = [{"en": f"edit {turn}", "zh": f"\u7f16\u8f91 {turn}"} for turn in range(turns)]
    return files | {f"{key}.json": json.dumps({"instructions": texts}).encode()}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> tuple[list[str], Problems]:
    problems = Problems()
    return [session.key for session in ShardPart(path).sessions(problems)], problems


texts = st.text(st.characters(codec="utf-8"), max_size=20)
instructions = st.lists(st.fixed_dictionaries({"en": texts}, optional={"zh": texts}), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(instructions, min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
def test_written_shards_are_read_back(tmp_path_factory, listed, per_shard, width, height):
    folder = tmp_path_factory.mktemp("shards")
    jpegs = [to_jpeg(torch.full((3, height, width), turn / 4)) for turn in range(4)]
    written = [StoredSession(f"s{n}", jpegs[: len(texts) + 1], texts) for n, texts in enumerate(listed)]
    paths = write_shards(written, folder, per_shard=per_shard)
    assert len(paths) == -(-len(listed) // per_shard)
    problems = Problems()
    sessions = [session for part in shard_parts(folder) for session in part.sessions(problems)]
    assert not problems.found
    assert [session.key for session in sessions] == [session.key for session in written]
    for session, original in zip(sessions, written):
        assert list(session.instructions) == original.instructions
        levels = torch.tensor([64 * turn for turn in range(session.turns + 1)])[:, None, None, None]
        assert session.images.shape == (session.turns + 1, 3, height, width)
        assert (session.images.int() - levels).abs().max() <= 2


def test_studio_sessions_survive_compression_and_are_written_reproducibly(tmp_path):
    part = studio_parts(ProceduralConfig(turns=2, height=32, width=48, seed=5), sessions=3, per_part=2)[0]
    rendered = list(part.sessions(Problems()))
    assert len(rendered) == 2 and rendered[0].images.shape == (3, 3, 32, 48)
    assert all(set(texts) == {"en", "zh"} for session in rendered for texts in session.instructions)
    paths = [write_shards(map(store, rendered), tmp_path / name)[0] for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    back = list(ShardPart(paths[0]).sessions(Problems()))
    for session, original in zip(back, rendered, strict=True):
        assert session.instructions == original.instructions
        assert (session.images.float() - original.images.float()).abs().mean() < 3
    assert part.fingerprint == studio_parts(part.settings, 4, per_part=2)[0].fingerprint
    others = [ProceduralConfig(2, 32, 48, 6), ProceduralConfig(2, 32, 48, 5, star=True), ProceduralConfig(3, 32, 48, 5)]
    assert part.fingerprint not in {studio_parts(other, 2)[0].fingerprint for other in others}


def without(name: str) -> Callable[[dict], dict]:
    return lambda files: {key: data for key, data in files.items() if key != name}


def with_file(name: str, data: bytes) -> Callable[[dict], dict]:
    return lambda files: files | {name: data}


def with_json(content: object) -> Callable[[dict], dict]:
    return with_file("bad.json", json.dumps(content).encode())


ONE = [{"en": "one"}]
BROKEN = {
    "image in the middle": (without("bad.1.jpg"), "missing image", "bad.1.jpg"),
    "source": (without("bad.0.jpg"), "missing image", "bad.0.jpg"),
    "no images": (lambda files: {"bad.json": files["bad.json"]}, "missing image", "bad.0.jpg"),
    "huge number": (with_file("bad.99999999999999.jpg", image(1)), "missing image", "bad.3.jpg"),
    "only source": (lambda files: without("bad.1.jpg")(without("bad.2.jpg")(files)), "no edited image", "source"),
    "two of a number": (with_file("bad.1.png", image(1, kind="PNG")), "duplicate image", "4 files for 3"),
    "no JSON": (without("bad.json"), "missing instructions", "bad.json"),
    "half JSON": (with_file("bad.json", b'{"instructions": ['), "unreadable instructions", "column"),
    "no UTF-8": (with_file("bad.json", b"\xff\xfe\xfd"), "unreadable instructions", "decode"),
    "deep JSON": (with_file("bad.json", b"[" * 100_000), "unreadable instructions", "recursion"),
    "a list": (with_json(ONE * 2), "unreadable instructions", "not a list"),
    "plain texts": (with_json({"instructions": ["one", "two"]}), "unreadable instructions", "not a list"),
    "numbers": (with_json({"instructions": [{"en": 1}, {"en": 2}]}), "unreadable instructions", "not a list"),
    "too few": (with_json({"instructions": ONE}), "wrong instruction count", "1 for 2"),
    "too many": (with_json({"instructions": ONE * 3}), "wrong instruction count", "3 for 2"),
    "two languages": (with_json({"instructions": [{"en": "a"}, {"zh": "b"}]}), "no common language", "en, zh"),
    "odd star": (with_json({"instructions": ONE * 2, "star": "yes"}), "unreadable instructions", "not true or false"),
    "half JPEG": (with_file("bad.1.jpg", image(1, 64, 64)[:-400]), "unreadable image", "bad.1.jpg"),
    "no image": (with_file("bad.2.jpg", b"hello"), "unreadable image", "bad.2.jpg"),
    "other format": (with_file("bad.2.jpg", image(2, kind="PPM")), "unreadable image", "bad.2.jpg"),
    "other size": (with_file("bad.2.jpg", image(2, 24, 8)), "mixed sizes", "16x8, 16x8, 24x8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_session_is_reported_and_the_others_are_read(tmp_path, case):
    change, reason, detail = BROKEN[case]
    groups = [files_of("first"), files_of("second"), change(files_of("bad")), files_of("third"), files_of("last")]
    path = write_tar(tmp_path / "a.tar", {name: data for group in groups for name, data in group.items()})
    keys, problems = read(path)
    assert tuple(keys) == GOOD
    (problem,) = problems.found
    assert (problem.origin, problem.key, problem.reason) == ("a.tar", "bad", reason) and detail in problem.detail
    assert str(problem).endswith(f": {REMEDIES[reason]}") and "\n" not in str(problem)
    assert problems.summary() == [f"1 x {reason}, first: {problem}"]


def test_a_duplicate_key_is_a_problem(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for key in ("first", "second", "first"):
            for name, data in files_of(key).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    keys, problems = read(path)
    assert keys == ["first", "second"] and [(p.key, p.reason) for p in problems.found] == [("first", "duplicate key")]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_always_detected(tmp_path_factory, data):
    """Truncated anywhere, or with any damaged header: a problem, and the sessions before it are read."""
    path = tmp_path_factory.mktemp("shards") / "a.tar"
    write_tar(path, {name: data for key in GOOD for name, data in files_of(key).items()})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        end = tar.offset  # of the members; zeros follow
    if data.draw(st.booleans(), "cut"):
        at = data.draw(st.integers(0, end), "at")
        path.write_bytes(whole[:at])
    else:
        at = data.draw(st.sampled_from(members), "at").offset
        path.write_bytes(whole[:at] + b"\xff" * 64 + whole[at + 64 :])
    keys, problems = read(path)
    assert problems.found[0].reason == "damaged archive" and problems.found[0].origin == "a.tar"
    complete = sum(member.offset_data + member.size <= at for member in members[3::4])
    assert tuple(keys) == GOOD[:complete]


def test_the_next_shard_is_read_after_a_damaged_one(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive at all" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    write_tar(tmp_path / "c.tar", files_of("first"))
    problems = Problems()
    keys = [session.key for part in shard_parts(tmp_path) for session in part.sessions(problems)]
    assert keys == ["first"] and [p.origin for p in problems.found] == ["a.tar", "b.tar"]


def test_writing_never_overwrites_and_checks_keys(tmp_path, largest_file):
    session = StoredSession("a", [image(0), image(1)], [{"en": "x"}])
    write_shards([session], tmp_path)
    with pytest.raises(AnchorEditError, match="already has shards 'shard-...'"):
        write_shards([session], tmp_path)
    with pytest.raises(AnchorEditError, match="a session key must have only letters.* got 'a.b'"):
        write_shards([StoredSession("a.b", session.jpegs, session.instructions)], tmp_path / "other")
    with largest_file(100), pytest.raises(AnchorEditError, match="shard .* cannot be written .*has room"):
        write_shards([session], tmp_path / "full")
    assert not list((tmp_path / "other").iterdir()) and not list((tmp_path / "full").iterdir())
    with pytest.raises(AnchorEditError, match="has no shards"):
        shard_parts(tmp_path / "other")


@given(st.text(max_size=30))
def test_every_name_gives_a_valid_key(name):
    key = key_of(name)
    assert key and key == key_of(key) and not set(key) & set("./\\ ")


def test_work_sizes_pad_as_an_editing_session_does():
    images = torch.arange(2 * 3 * 8 * 16).remainder(256).view(2, 3, 8, 16).to(torch.uint8)
    session = EditSession("a", images, ({"en": ""},))
    assert WorkSizes(16, 8, 4.0).fit(EditSession("a", images[..., :8], ({"en": ""},))).images.shape[-2:] == (16, 16)
    fitted = WorkSizes(16, 16, 1.0).fit(session).images
    assert torch.equal(fitted[..., 4:12, :], images)  # not scaled, and padded by repeating the edge
    assert torch.equal(fitted[..., :4, :], images[..., :1, :].expand(-1, -1, 4, -1))


def test_validate_prints_one_line_for_each_problem(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", files_of("first") | files_of("second", turns=1))
    assert main(["data", "validate", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 sessions in 1 shards, 3 turns" in out and "16x8" in out and "en" in out and "zh" in out
    write_tar(tmp_path / "b.tar", files_of("first") | without("bad.1.jpg")(files_of("bad")))
    write_tar(tmp_path / "c.tar", {})
    assert main(["data", "validate", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"b.tar first: duplicate key (a.tar has it as well): {REMEDIES['duplicate key']}",
        f"b.tar bad: missing image (bad.1.jpg): {REMEDIES['missing image']}",
        f"c.tar: empty shard (no session): {REMEDIES['empty shard']}",
        "3 problems",
    ]


def test_written_studio_shards_are_valid(tmp_path, capsys):
    options = ["--sessions", "3", "--turns", "2", "--size", "48x32", "--per-shard", "2"]
    main(["data", "write", "--out", str(tmp_path), *options])
    assert main(["data", "validate", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "3 sessions in 2 shards, 6 turns" in out and "3 x 48x32" in out


@pytest.mark.slow
def test_stars_are_stars_in_stage_1_and_problems_in_the_others(small_model, tmp_path, capsys):
    """Stage 1 trains on both; the other stages leave stars out, which is an error if there are no chains."""
    for name, more in (("star", ["--star"]), ("chain", ["--seed", "2"])):
        options = ["--sessions", "2", "--turns", "2", "--size", "64x64", "--name", name, *more]
        main(["data", "write", "--out", str(tmp_path / "shards"), *options])
    main(["data", "validate", str(tmp_path / "shards")])
    assert "layouts: 2 x chains, 2 x stars" in capsys.readouterr().out
    encoders = Encoders(small_model / "vae", small_model / "text_encoder")
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1, wait_for_everyone=lambda: None)

    def source(layouts, path="shards"):
        data, edit = DataConfig(path=str(tmp_path / path)), EditConfig(resolution=64, resolution_step=64)
        return open_source(data, PretrainConfig(batch=2), edit, layouts, encoders, tmp_path / "cache", alone)

    both = source(("star", "chain"))
    assert {both.batch(step, 0).star for step in range(2)} == {True, False} and both.preview(4).latents.shape[0] == 2
    chains = source(("chain",))
    assert {chains.batch(step, 0).star for step in range(4)} == {False}
    assert "left out: 2 x a star" in "\n".join(chains.describe())
    (tmp_path / "stars").mkdir()
    for path in (tmp_path / "shards").glob("star-*"):
        path.rename(tmp_path / "stars" / path.name)
    with pytest.raises(AnchorEditError, match="no usable session. 2 x a star, .*: give this stage chains"):
        source(("chain",), "stars")
