"""Folders and tables of edit sessions become shards; invalid sessions are reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from train.__main__ import main
from train.data.convert import convert_folders, convert_table
from train.data.session import Problems
from train.data.shards import shard_parts


def save(path: Path, level: int, size: tuple[int, int] = (16, 8), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path, **options)
    return path


def levels(jpegs) -> list[int]:
    import io

    return [round(Image.open(io.BytesIO(jpeg)).convert("L").getpixel((0, 0)) / 10) * 10 for jpeg in jpegs]


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "sessions"
    for number, name in enumerate(["input.png", "2.png", "10.jpg", "mask1.png"]):
        save(root / "my session 1" / name, number * 10)
    (root / "my session 1" / "instructions.txt").write_text("\ufefffirst \n second\n\n", encoding="utf-8")
    for number in range(3):
        save(root / "b" / f"{number}.jpg", 100 + number * 10)
    listed = {"instructions": [{"en": "one", "zh": "\u4e00"}, "two"]}
    (root / "b" / "instructions.json").write_text(json.dumps(listed), encoding="utf-8")
    save(root / "not a folder.png", 0)
    return root


def test_folders_become_sessions(folders, tmp_path):
    problems = Problems()
    second, first = convert_folders(folders, "en", problems)
    assert not problems.found
    assert (first.key, levels(first.jpegs)) == ("my_session_1", [0, 10, 20])
    assert first.instructions == ({"en": "first"}, {"en": "second"})
    assert (second.key, levels(second.jpegs)) == ("b", [100, 110, 120])
    assert second.instructions == ({"en": "one", "zh": "\u4e00"}, {"en": "two"})
    assert second.jpegs[1] == (folders / "b" / "1.jpg").read_bytes()  # a JPEG is not compressed again
    main(["data", "convert", str(folders), "--out", str(tmp_path / "out")])
    (part,) = shard_parts(tmp_path / "out")
    assert [session.key for session in part.sessions(problems)] == ["b", "my_session_1"] and not problems.found


@pytest.mark.parametrize("case", ["texts", "count", "image", "none", "size", "link", "only", "key", "json"])
def test_a_bad_folder_is_reported_and_the_others_are_converted(folders, tmp_path, case):
    bad = folders / "c"
    for number in range(2):
        save(bad / f"{number}.jpg", 0)
    (bad / "instructions.txt").write_text("one", encoding="utf-8")
    reason = {
        "texts": "missing instructions",
        "count": "wrong instruction count",
        "image": "unreadable image",
        "none": "missing image",
        "size": "mixed sizes",
        "link": "outside the folder",
        "only": "no edited image",
        "key": "duplicate key",
        "json": "unreadable instructions",
    }[case]
    if case == "texts":
        (bad / "instructions.txt").unlink()
    elif case == "count":
        (bad / "instructions.txt").write_text("one\ntwo", encoding="utf-8")
    elif case == "image":
        (bad / "1.jpg").write_bytes(b"hello")
    elif case == "none":
        (bad / "0.jpg").unlink()
        (bad / "1.jpg").unlink()
    elif case == "size":
        save(bad / "1.jpg", 0, (8, 8))
    elif case == "link":
        (bad / "1.jpg").unlink()
        (bad / "1.jpg").symlink_to(save(tmp_path / "secret.jpg", 0))
    elif case == "only":
        (bad / "1.jpg").unlink()
    elif case == "key":
        bad = bad.rename(folders / "my.session.1")
    elif case == "json":
        (bad / "instructions.json").write_text('{"instructions": "one"}', encoding="utf-8")
    problems = Problems()
    keys = {session.key for session in convert_folders(folders, "en", problems)}
    (problem,) = problems.found
    assert problem.reason == reason
    if case == "key":  # the two share a key: the first in order keeps it
        assert keys == {"b", "my_session_1"} and problem.key in ("my session 1", "my.session.1")
    else:
        assert keys == {"b", "my_session_1"} and problem.key == "c"


def row(session, turn, source, target, text="x", **more) -> dict:
    return {"img_id": session, "turn_index": turn, "source_img": source, "target_img": target} | {
        "instruction": text,
        **more,
    }


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", number * 10)
    save(tmp_path / "images" / "copy of 1.bmp", 10)
    return [
        row("s2", 1, "0.png", "1.png", "one", instruction_zh="\u4e00"),
        row("s1", 1, "3.png", "2.png"),
        row("s2", 3, "2.png", "3.png", "three"),
        row("s2", 2, "copy of 1.bmp", "2.png", "two"),
    ]


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(cells) for cells in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            names = dict.fromkeys(name for cells in rows for name in cells)
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_become_sessions(rows, tmp_path, suffix, capsys):
    table, problems = write_table(tmp_path / f"edits{suffix}", rows), Problems()
    long, short = convert_table(table, tmp_path / "images", "en", problems)
    assert not problems.found
    assert (long.key, levels(long.jpegs)) == ("s2", [0, 10, 20, 30])
    assert [texts["en"] for texts in long.instructions] == ["one", "two", "three"]
    assert long.instructions[0]["zh"] == "\u4e00"
    assert (short.key, levels(short.jpegs)) == ("s1", [30, 20])
    main(["data", "convert", str(table), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    (part,) = shard_parts(tmp_path / "out")
    assert [session.turns for session in part.sessions(problems)] == [3, 1] and not problems.found


@pytest.mark.parametrize(
    "extra, reason",
    [
        ([row("bad", 1, "0.png", "1.png"), row("bad", 3, "1.png", "2.png")], "broken chain"),
        ([row("bad", 1, "0.png", "1.png"), row("bad", 1, "0.png", "2.png")], "broken chain"),
        ([row("bad", 1, "0.png", "1.png"), row("bad", 2, "0.png", "2.png")], "broken chain"),
        ([row("bad", 2, "0.png", "1.png")], "broken chain"),
        ([row("bad", 1, "0.png", "9.png")], "missing image"),
        ([row("bad", 1, "0.png", "../edits.csv")], "outside the folder"),
        ([row("bad", 1, "0.png", "/etc/hostname")], "outside the folder"),
        ([row("bad", "one", "0.png", "1.png")], "unreadable table"),
        ([row("bad", 1, "0.png", "1.png"), row("bad", 2, "", "2.png")], "unreadable table"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_bad_session_of_a_table_is_reported(rows, tmp_path, suffix, extra, reason):
    problems = Problems()
    table = write_table(tmp_path / f"edits{suffix}", [*rows, *extra])
    keys = [session.key for session in convert_table(table, tmp_path / "images", "en", problems)]
    assert keys == ["s2", "s1"] and [(p.key, p.reason) for p in problems.found] == [("bad", reason)]


def test_invalid_lines_of_a_table_are_reported(rows, tmp_path):
    table = write_table(tmp_path / "edits.jsonl", rows)
    table.write_text('{"half": \n[1]\n' + table.read_text(encoding="utf-8"), encoding="utf-8")
    problems = Problems()
    assert len(list(convert_table(table, tmp_path / "images", "en", problems))) == 2
    assert [(p.key, p.reason) for p in problems.found] == [
        ("row 1", "unreadable table"),
        ("row 2", "unreadable table"),
    ]


def test_unusable_sources_are_one_clear_error(rows, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    parquet = tmp_path / "edits.parquet"
    parquet.write_bytes(b"PAR1")

    def error(source: Path) -> str:
        assert main(["data", "convert", str(source), *out]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "must be a .csv or .jsonl file, got" in error(parquet)
    assert "does not exist" in error(tmp_path / "nothing")
    table = write_table(tmp_path / "edits.csv", rows)  # its images are in another folder
    assert "no usable session" in error(table)
    assert not (tmp_path / "out").exists()
    table.write_bytes(b"session,turn\n\xff\xfe")
    assert "Save it as UTF-8" in error(table)
