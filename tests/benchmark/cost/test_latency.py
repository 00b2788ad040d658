"""The latency benchmark counts seconds and bytes of every turn, and says if a session holds more than it sees."""

from __future__ import annotations

import json

import pytest

from anchoredit_model.memory.kv_store import KVStore
from benchmark.__main__ import main

FRAME = 2 * 2 * 16 * 128 * 4  # keys and values, layers, tokens of 64x64 pixels, width, float32


@pytest.mark.parametrize(("history", "frames"), [("stream", [2, 2, 2]), ("refresh", [1, 2, 2])])
def test_bytes_held_are_those_of_the_frames_in_view(small_model, tmp_path, capsys, history, frames):
    asked = ["--turns", "3", "--window", "1", "--repeats", "1", "--history", history]
    assert main(["cost", "latency", *asked, "--model", str(small_model), "--out", str(tmp_path / "latency.json")]) == 0
    report = json.loads((tmp_path / "latency.json").read_text())
    assert set(report) >= {"turns", "ratio"} and report["ratio"] > 0
    rows = report["turns"]
    assert [row["turn"] for row in rows] == [1, 2, 3] and all(row["seconds"] > 0 for row in rows)
    assert [row["bytes"] for row in rows] == [row["visible_bytes"] for row in rows] == [FRAME * n for n in frames]
    out = capsys.readouterr().out
    assert "turn 3 / turn 3: 1.000" in out and "at every turn: True" in out


def test_store_that_never_evicts_fails_the_check(small_model, monkeypatch, capsys):
    monkeypatch.setattr(KVStore, "shrink", lambda self, protect=(): None)
    assert (
        main(["cost", "latency", "--turns", "3", "--window", "1", "--repeats", "1", "--model", str(small_model)]) == 1
    )
    assert "at every turn: False" in capsys.readouterr().out
