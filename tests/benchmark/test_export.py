"""Sessions exported to folders, and another editor's images of them judged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import save_image
from benchmark.__main__ import execute

ASKED = ["--sessions", "2", "--turns", "2", "--size", "64", "--seed", "5"]


def run(argv: list[str]) -> int:
    return execute(["run", *argv])


def export(argv: list[str]) -> int:
    return execute(["export", *argv])


def test_exported_oracle_images_are_judged_as_the_oracle(tmp_path):
    sessions, out = tmp_path / "sessions", tmp_path / "run"
    assert export([*ASKED, "--out", str(sessions)]) == 0
    run([*ASKED, "--editor", "oracle", "--out", str(tmp_path / "oracle")])
    judged = ["--editor", "folder", "--images", str(sessions), "--out", str(out)]
    with pytest.raises(AnchorEditError, match=r"00000/turn1.png' is missing. Add it"):
        run([*ASKED, *judged])
    for session in range(2):
        made = tmp_path / "oracle" / "sessions" / f"{session:05d}"
        asked = json.loads((sessions / f"{session:05d}" / "instructions.json").read_text())
        assert asked == [turn["instruction"] for turn in json.loads((made / "session.json").read_text())["turns"]]
        for turn in (1, 2):
            shutil.copy(made / f"turn{turn}.png", sessions / f"{session:05d}")
    assert run([*ASKED, *judged]) == 0
    assert json.loads((out / "report.json").read_text())["overall"]["success"]["mean"] == 1


def test_images_of_other_sessions_are_refused(tmp_path):
    sessions = tmp_path / "sessions"
    export([*ASKED, "--out", str(sessions)])
    judged = ["--editor", "folder", "--images", str(sessions), "--out", str(tmp_path / "run")]
    with pytest.raises(AnchorEditError, match="source.png' belongs to other sessions.*seed"):
        run([*ASKED[:-1], "6", *judged[:-1], str(tmp_path / "others")])
    with pytest.raises(AnchorEditError, match="instructions.json' belongs to other sessions.*protocol"):
        run([*ASKED, "--languages", "zh", *judged[:-1], str(tmp_path / "chinese")])  # the images are the same
    with pytest.raises(AnchorEditError, match="instructions.json' belongs to other sessions.*Choose another --out"):
        export([*ASKED, "--languages", "zh", "--out", str(sessions)])
    save_image(torch.zeros(3, 32, 64), sessions / "00000" / "turn1.png")
    with pytest.raises(AnchorEditError, match=r"turn 1 must be \[3, 64, 64\], got \[3, 32, 64\]"):
        run([*ASKED, *judged])
    (sessions / "00000" / "turn1.png").write_bytes(b"no image")
    with pytest.raises(AnchorEditError, match="turn1.png"):
        run([*ASKED, *judged])
    with pytest.raises(AnchorEditError, match="needs images. Give --images"):
        run([*ASKED, "--editor", "folder", "--out", str(tmp_path / "other")])
