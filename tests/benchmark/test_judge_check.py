"""The check of the judge covers every case and prints a share for each."""

from __future__ import annotations

import json

import pytest

from benchmark.__main__ import main


@pytest.mark.slow
def test_the_judge_is_checked_on_every_case(tmp_path, capsys):
    out = tmp_path / "judge.json"
    assert main(["judge", "--sessions", "3", "--turn", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"oracle", "round trip", "unchanged", "another", "shifted", "identity", "painted"}
    assert report["oracle"]["accepted"] == 1
    assert all(report[name]["accepted"] == 0 for name in ("unchanged", "another", "shifted", "identity", "painted"))
    assert capsys.readouterr().out.count("|") == 9 * 6
