"""Runs side by side: pooled over noise, compared session by session, on one page that needs nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest

import benchmark.suites.studio
from anchoredit_model.errors import AnchorEditError
from benchmark.__main__ import execute
from benchmark.report.editor_runs import find_comparisons
from benchmark.report.statistics import paired_difference

ASKED = ["--sessions", "2", "--turns", "2", "--size", "32"]
NAMES = ["anchor and window", "previous only"]


def run(argv: list[str]) -> int:
    return execute(["run", *argv])


def compare(argv: list[str]) -> int:
    return execute(["compare", *argv])


def ablate(argv: list[str]) -> int:
    return execute(["ablate", *argv])


@pytest.mark.slow
def test_an_ablation_is_run_once_and_pooled_over_seeds(tmp_path, monkeypatch, capsys):
    asked = [*ASKED, "--sampling-seeds", "2", "--out", str(tmp_path), *(f"--only={name}" for name in NAMES)]
    assert ablate(asked) == 0
    entries = json.loads((tmp_path / "ablation.json").read_text())
    assert [(entry["ablation"], entry["sampling_seed"]) for entry in entries] == [
        (name, seed) for name in NAMES for seed in (0, 1)
    ]
    assert all(set(entry["by_turn"]) == {"success", "identity", "probe accuracy"} for entry in entries)
    assert all(len(means) == entry["turns"] == 2 for entry in entries for means in entry["by_turn"].values())
    (comparison,) = find_comparisons([tmp_path / name for name in NAMES])
    for editor in comparison.editors:
        likeness = editor.turns["likeness"]
        assert likeness.index.levshape == (2, 2, 2) and likeness.notna().all()
        by_seed = likeness.groupby("run").mean()
        assert by_seed[0] != by_seed[1]  # other noise, other images
        pooled = [interval["mean"] for interval in editor.by_turn["likeness"]]
        np.testing.assert_allclose(pooled, likeness.groupby("turn").mean(), atol=1e-4)

    assert ablate([*asked, "--turns", "1", "2"]) == 0  # the first of two turns is a session of one
    both = json.loads((tmp_path / "ablation.json").read_text())
    assert [entry for entry in both if entry["turns"] == 2] == entries and len(both) == 8
    assert all(len(entry["by_turn"]["success"]) == entry["turns"] for entry in both)
    same_editor = ["--editor", "pipeline", "--anchor-frames", "1", "--window", "4", "--sampling-seed", "1"]
    run([*ASKED, "--turns", "1", *same_editor, "--out", str(tmp_path / "one" / "run")])
    alone = json.loads((tmp_path / "one" / "run" / "report.json").read_text())["by_turn"]["identity"][0]["mean"]
    same = {"ablation": NAMES[0], "turns": 1, "sampling_seed": 1}
    (found,) = (entry for entry in both if same.items() <= entry.items())
    assert found["by_turn"]["identity"] == [alone]
    shutil.rmtree(tmp_path / "one")

    assert ablate([*asked, "--protocol", "sanctioned"]) == 0  # the others stay
    every = json.loads((tmp_path / "ablation.json").read_text())
    assert [entry for entry in every if entry["protocol"] == "chain"] == entries and len(every) == 8
    assert all(entry["by_turn"]["probe accuracy"][0] is None for entry in every)
    capsys.readouterr()

    monkeypatch.setattr(benchmark.suites.studio, "run_session", None)  # nothing is left to do
    written = (tmp_path / "comparison" / "comparison.html").read_text()
    assert (
        ablate([*asked, "--turns", "1"]) == 0 and (tmp_path / "comparison" / "comparison.html").read_text() == written
    )
    out = capsys.readouterr().out
    assert out.count("| anchor and window |") == 2 and out.count("probe accuracy at 2") == 1
    assert len(json.loads((tmp_path / "ablation.json").read_text())) == 12


@pytest.mark.slow
def test_page_is_self_contained_and_equals_the_tables(tmp_path):
    for editor in ("oracle", "no-op"):
        run([*ASKED, "--editor", editor, "--out", str(tmp_path / editor)])
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nafter\n")
    folders = [str(tmp_path / editor) for editor in ("oracle", "no-op")]
    assert compare([*folders, "--out", str(tmp_path / "out"), "--into", str(readme)]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and page.count("<svg") == 1 and page.count("<img") == 4
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "\nchain, 2 turns, 2 sessions:\n\n| editor |" in text
    assert "| oracle | 100.0 | 100.0 | 100.0 (100.0 to 100.0) |" in text
    (comparison,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    oracle, idle = comparison["editors"]
    assert oracle["overall"]["mean"] == 1 and idle["vs_baseline"]["high"] < 0 and oracle["vs_baseline"] is None
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["editor"] == "oracle" and row["metric"] == "success"]
    assert [(row["turn"], float(row["mean"])) for row in rows] == [("1", 1.0), ("2", 1.0)]


def test_differences_are_paired():
    """Sessions differ much, two editors always by the same: the interval of the difference is narrow."""
    rng = np.random.default_rng(0)
    counts = np.full(40, 10.0)
    harder = rng.integers(2, 10, 40).astype(float)
    found = paired_difference((harder, counts), (harder - 1, counts))
    assert found == {"mean": 0.1, "low": 0.1, "high": 0.1}
    apart = paired_difference((harder, counts), (rng.permutation(harder), counts))
    assert apart["low"] < 0 == apart["mean"] < apart["high"]
    assert paired_difference((harder, counts), (harder, counts * 0)) is None


@pytest.mark.slow
def test_incomparable_runs_are_refused(tmp_path):
    with pytest.raises(AnchorEditError, match="no finished run in .*benchmark run"):
        compare([str(tmp_path), "--out", str(tmp_path / "out")])
    run([*ASKED, "--editor", "oracle", "--out", str(tmp_path / "a" / "seed-0")])
    run([*ASKED, "--editor", "no-op", "--out", str(tmp_path / "a" / "seed-1")])
    with pytest.raises(AnchorEditError, match="are both 'a' but differ in editor"):
        find_comparisons([tmp_path])
    readme = tmp_path / "README.md"
    readme.write_text("no lines")
    with pytest.raises(AnchorEditError, match="must have the lines .* Add them"):
        compare([str(tmp_path / "a" / "seed-0"), "--out", str(tmp_path / "out"), "--into", str(readme)])
    for options, said in (
        (["--model", "bundled"], "must be LABEL=PATH, got 'bundled'"),
        (["--model", "..=x"], "Leave out slashes and dots"),
        (["--sampling-seeds", "0"], "--sampling-seeds must be 1 or more, got 0"),
    ):
        with pytest.raises(AnchorEditError, match=said):
            ablate([*ASKED, "--out", str(tmp_path), *options])
