"""The studio suite: what its report says, and that the same seed says it again."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmark.studio_suite import main
from train.instructions import KINDS


@pytest.fixture(scope="module")
def report(small_model, tmp_path_factory):
    """Runs the suite with one step a turn; returns the report."""

    def run(*options: str) -> dict:
        out = tmp_path_factory.mktemp("suite") / "new" / "out"
        asked = ["--model", str(small_model), "--sessions", "2", "--turns", "2", "--steps", "1", "--out", str(out)]
        assert main([*asked, *options]) == 0
        with Image.open(out / "sheet.png") as sheet:
            assert sheet.size == (3 * 128, 4 * 128)  # a source and two turns; two sessions, each above its truth
        return json.loads((out / "report.json").read_text())

    return run


def test_the_report_says_how_each_turn_and_kind_went(report):
    result = report("--window", "1", "--guidance", "2")
    assert result["suite"] == "studio" and result["model"]
    settings = {"sessions": 2, "turns": 2, "seed": 1, "steps": 1, "guidance": 2.0, "dtype": "float32"}
    assert settings.items() <= result["settings"].items() and result["settings"]["policy"]["window"] == 1
    assert len(result["followed_by_turn"]) == len(result["damage_by_turn"]) == 2
    assert all(value in (0.0, 0.5, 1.0) for value in result["followed_by_turn"])
    assert all(0.05 < value < 1 for value in result["damage_by_turn"])  # random weights spoil the picture
    assert set(result["followed_by_kind"]) == set(KINDS)
    for when, count in (("turn 1", 2), ("all turns", 4)):
        rows = [kind[when] for kind in result["followed_by_kind"].values()]
        assert sum(row["count"] for row in rows) == count and all(0 <= row["followed"] <= 1 for row in rows)
    assert result["cost"]["seconds_per_turn"] > 0


def test_the_same_seed_says_the_same(report):
    one, two, other = report("--seed", "5"), report("--seed", "5"), report("--seed", "6")
    for result in (one, two, other):
        del result["cost"]
    assert one == two
    assert one["damage_by_turn"] != other["damage_by_turn"]
