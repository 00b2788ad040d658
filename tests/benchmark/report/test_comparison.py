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
from benchmark.ablate import ABLATIONS
from benchmark.ablate import main as ablate
from benchmark.report.comparison import main as report
from benchmark.report.editor_runs import find_comparisons
from benchmark.report.statistics import paired_difference
from benchmark.run import main as run

ASKED = ["--sessions", "2", "--turns", "2", "--size", "32"]
NAMES = ["anchor and window", "previous only"]


@pytest.mark.slow
def test_an_ablation_is_done_once_and_pooled_by_variant(tmp_path, monkeypatch, capsys):
    asked = [*ASKED, "--sampling-seeds", "2", "--out", str(tmp_path), *(f"--only={name}" for name in NAMES)]
    assert ablate(asked) == 0
    entries = json.loads((tmp_path / "ablation.json").read_text())
    assert [(entry["variant"], entry["seed"]) for entry in entries] == [
        (name, seed) for name in NAMES for seed in (0, 1)
    ]
    assert all(
        len(entry["success_by_turn"]) == len(entry["identity_by_turn"]) == entry["turns"] == 2 for entry in entries
    )
    (comparison,) = find_comparisons([tmp_path / name for name in NAMES])
    for group in comparison.groups:
        assert group.tables["likeness"].shape == (2, 2, 2)
        by_seed = group.tables["likeness"].mean(axis=(1, 2))
        assert by_seed[0] != by_seed[1]  # other noise, other images
        pooled = [figure["mean"] for figure in group.by_turn["likeness"]]
        np.testing.assert_allclose(pooled, group.tables["likeness"].mean(axis=(0, 1)), atol=1e-4)

    assert ablate([*asked, "--turns", "1", "2"]) == 0  # the first of two turns is a session of one
    both = json.loads((tmp_path / "ablation.json").read_text())
    assert [entry for entry in both if entry["turns"] == 2] == entries and len(both) == 8
    assert all(len(entry["success_by_turn"]) == entry["turns"] for entry in both)
    run([*ASKED, "--turns", "1", *ABLATIONS[NAMES[0]], "--sampling-seed", "1", "--out", str(tmp_path / "one" / "run")])
    alone = json.loads((tmp_path / "one" / "run" / "report.json").read_text())["identity_by_turn"][0]["mean"]
    same = {"variant": NAMES[0], "turns": 1, "seed": 1}
    (found,) = (entry for entry in both if same.items() <= entry.items())
    assert found["identity_by_turn"] == [alone]
    shutil.rmtree(tmp_path / "one")

    assert ablate([*asked, "--protocol", "sanctioned"]) == 0  # the others stay
    every = json.loads((tmp_path / "ablation.json").read_text())
    assert [entry for entry in every if entry["protocol"] == "chain"] == entries and len(every) == 8
    assert all(entry["in_question_by_turn"][0] is None for entry in every)
    capsys.readouterr()

    monkeypatch.setattr(benchmark.suites.studio, "run_session", None)  # nothing is left to do
    written = (tmp_path / "report" / "report.html").read_text()
    assert ablate([*asked, "--turns", "1"]) == 0 and (tmp_path / "report" / "report.html").read_text() == written
    out = capsys.readouterr().out
    assert out.count("| anchor and window |") == 2 and out.count("in question at 2") == 1
    assert len(json.loads((tmp_path / "ablation.json").read_text())) == 12


@pytest.mark.slow
def test_the_page_stands_alone_and_the_tables_say_the_same(tmp_path):
    for editor in ("oracle", "no-op"):
        run([*ASKED, "--editor", editor, "--out", str(tmp_path / editor)])
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nafter\n")
    folders = [str(tmp_path / editor) for editor in ("oracle", "no-op")]
    assert report([*folders, "--out", str(tmp_path / "out"), "--into", str(readme)]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and page.count("<svg") == 1 and page.count("<img") == 4
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "\nchain, 2 turns, 2 sessions:\n\n| editor |" in text
    assert "| oracle | 100.0 | 100.0 | 100.0 (100.0 to 100.0) |" in text
    (comparison,) = json.loads((tmp_path / "out" / "report.json").read_text())
    truth, idle = comparison["groups"]
    assert truth["overall"]["mean"] == 1 and idle["against_first"]["high"] < 0 and truth["against_first"] is None
    with open(tmp_path / "out" / "report.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["editor"] == "oracle" and row["figure"] == "success"]
    assert [(row["turn"], float(row["mean"])) for row in rows] == [("1", 1.0), ("2", 1.0)]


def test_differences_are_paired():
    """Sessions differ much, two editors always by the same: the interval of the difference is narrow."""
    rng = np.random.default_rng(0)
    counts = np.full(40, 10.0)
    harder = rng.integers(2, 10, 40).astype(float)
    found = paired_difference((harder, harder - 1), (counts, counts))
    assert found == {"mean": 0.1, "low": 0.1, "high": 0.1}
    apart = paired_difference((harder, rng.permutation(harder)), (counts, counts))
    assert apart["low"] < 0 == apart["mean"] < apart["high"]
    assert paired_difference((harder, harder), (counts, counts * 0)) is None


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(tmp_path):
    with pytest.raises(AnchorEditError, match="no finished run in .*benchmark run"):
        report([str(tmp_path), "--out", str(tmp_path / "out")])
    run([*ASKED, "--editor", "oracle", "--out", str(tmp_path / "a" / "seed-0")])
    run([*ASKED, "--editor", "no-op", "--out", str(tmp_path / "a" / "seed-1")])
    with pytest.raises(AnchorEditError, match="are both 'a' but of different editors"):
        find_comparisons([tmp_path])
    readme = tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(AnchorEditError, match="no place for the tables. Put in the lines"):
        report([str(tmp_path / "a" / "seed-0"), "--out", str(tmp_path / "out"), "--into", str(readme)])
    for options, said in (
        (["--model", "bundled"], "'bundled' has no label"),
        (["--model", "..=x"], "Leave out slashes and dots"),
        (["--sampling-seeds", "0"], "--sampling-seeds 0 measures nothing"),
    ):
        with pytest.raises(AnchorEditError, match=said):
            ablate([*ASKED, "--out", str(tmp_path), *options])
