"""A whole run is reproducible from its seeds, also after it was stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import benchmark.suites.studio
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.images import load_image
from benchmark.__main__ import execute
from benchmark.__main__ import main as command
from benchmark.editors.controls import OracleEditor
from benchmark.report.sheet import can_write, caption
from studio.render import render

TURNS, SESSIONS = 4, 3
ASKED = ["--sessions", str(SESSIONS), "--turns", str(TURNS), "--size", "32"]


@dataclass
class Verdict:
    followed: torch.Tensor
    attributes: torch.Tensor
    damage: torch.Tensor

    preservation = identity = likeness = property(lambda self: self.followed)


class StrictJudge:
    """Accepts only the drawing of what was judged with the edit done, and believes what it accepted."""

    def __init__(self, thresholds):
        self.limits = thresholds

    def judge(self, images, previous, judged, edits):
        asked = torch.tensor([edit.apply(row) for edit, row in zip(edits, judged.attributes.tolist(), strict=True)])
        away = (render(judged.with_attributes(asked), *images.shape[-2:]) - images).abs().mean(dim=(1, 2, 3))
        right = away < 0.5 / 255
        return Verdict(right, torch.where(right[:, None], asked, judged.attributes), away)


@pytest.fixture(autouse=True)
def strict_judge(monkeypatch):
    monkeypatch.setattr(benchmark.suites.studio, "Judge", StrictJudge)


def run(out: Path, *options: str) -> dict:
    assert execute(["run", *ASKED, "--out", str(out), *options]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report.pop("cost")["seconds_per_turn"] > 0
    return report


def means(intervals: list[dict]) -> list[float]:
    return [interval["mean"] for interval in intervals]


@pytest.mark.slow
def test_controls(tmp_path, capsys):
    """The oracle always succeeds; no-op and shuffled never do, null edits apart."""
    oracle = run(tmp_path / "oracle", "--editor", "oracle")
    assert means(oracle["by_turn"]["success"]) == means(oracle["by_turn"]["SR@k"]) == [1] * TURNS
    assert oracle["protocol"] == "chain" and oracle["model"] is None and oracle["first_failure"]["never"] == SESSIONS
    with Image.open(tmp_path / "oracle" / "sheet.png") as sheet:
        assert sheet.width > TURNS * 144 and sheet.height > SESSIONS * 288
    idle = run(tmp_path / "idle", "--editor", "no-op")
    assert (
        idle["overall"]["success_of_edits"]["mean"] == 0 and sum(idle["not_applicable_by_turn"]) > 0
    )  # "undo that": of what?
    shuffled = run(tmp_path / "shuffled", "--editor", "shuffled")
    assert means(shuffled["by_turn"]["success"]) == [0] * TURNS
    assert "| success | 100.0% |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, TURNS + 3, SESSIONS * TURNS])
def test_stopped_run_resumes_where_it_stopped(tmp_path, monkeypatch, stop_at):
    options = ("--protocol", "sanctioned", "--editor", "oracle")
    whole = run(tmp_path / "whole", *options)
    edits = []

    def edit(self, instruction, truly=OracleEditor.edit):
        edits.append(instruction)
        if len(edits) == stop_at:
            raise KeyboardInterrupt
        return truly(self, instruction)

    monkeypatch.setattr(OracleEditor, "edit", edit)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", *options)
    finished = (stop_at - 1) // TURNS
    assert run(tmp_path / "stopped", *options) == whole
    assert len(edits) - stop_at == (SESSIONS - finished) * TURNS
    for session in range(SESSIONS):
        names = [f"sessions/{session:05d}/{name}" for name in ("source.png", "turn1.png", f"turn{TURNS}.png")]
        assert all((tmp_path / "stopped" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


@pytest.mark.slow
def test_a_session_without_a_record_is_run_again(tmp_path):
    whole = run(tmp_path, "--editor", "oracle")
    folder = tmp_path / "sessions" / "00001"
    (folder / "session.json").unlink()  # killed after the images ...
    (folder / "turn2.png").write_bytes(b"")  # ... or while another program had one
    assert run(tmp_path, "--editor", "oracle") == whole
    record = folder / "session.json"
    record.write_text(record.read_text()[:-20])
    with pytest.raises(AnchorEditError, match="session.json' cannot be read .*Delete it"):
        run(tmp_path, "--editor", "oracle")


@pytest.mark.slow
def test_other_settings_do_not_resume_a_run(tmp_path, small_model, capsys):
    model = ("--editor", "pipeline", "--model", str(small_model), "--steps", "1", "--size", "64", "--sessions", "1")
    first = run(tmp_path, *model)
    assert run(tmp_path, *model) == first
    for options, words in (
        (("--seed", "2"), "seed 1, this one has 2"),
        (("--window", "3"), "editor_settings.policy.window 2, this one has 3"),
    ):
        with pytest.raises(AnchorEditError, match=words + ". Choose another --out"):
            run(tmp_path, *model, *options)
    assert command(["run", *ASKED, "--editor", "oracle", "--steps", "2", "--out", str(tmp_path / "new")]) == 2
    assert "error: editor 'oracle' does not take --steps 2" in capsys.readouterr().err


@pytest.mark.slow
def test_drift_is_measured_where_nothing_should_change(tmp_path, monkeypatch):
    def lighter(self, instruction, truly=OracleEditor.edit):
        return truly(self, instruction) * 0.9 + 0.1

    oracle = run(tmp_path / "oracle", "--protocol", "a-b-a", "--editor", "oracle")
    assert means(oracle["by_turn"]["drift: delta_e"]) == [0] * TURNS
    monkeypatch.setattr(OracleEditor, "edit", lighter)
    drifted = run(tmp_path / "lighter", "--protocol", "a-b-a", "--editor", "oracle")["by_turn"]
    assert all(interval["low"] > 1 for interval in drifted["drift: dl"])
    assert all(abs(x) < 0.1 for x in means(drifted["drift: shift"]))
    for session in range(SESSIONS):  # at every second turn the whole image is the source's: all of it is measured
        folder = tmp_path / "lighter" / "sessions" / f"{session:05d}"
        turns = json.loads((folder / "session.json").read_text())["turns"]
        source, second = load_image(folder / "source.png"), load_image(folder / "turn2.png")
        assert turns[1]["drift"]["l1"] == pytest.approx(float((second - source).abs().mean()), abs=1e-5)
        assert 0 < turns[0]["drift"]["l1"] < 0.1  # and never the edit itself


def test_an_image_of_another_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(OracleEditor, "edit", lambda self, instruction: torch.zeros(3, 8, 8))
    with pytest.raises(AnchorEditError, match=r"turn 1 must be \[3, 32, 32\], got \[3, 8, 8\]"):
        run(tmp_path, "--editor", "oracle")


def test_captions_without_a_font_show_the_edit_request(monkeypatch):
    turn = {"instruction": "\u628a\u5b83\u79fb\u5230\u5de6\u8fb9", "kind": "move", "asked": {"place": "left"}}
    monkeypatch.setattr("benchmark.report.sheet.can_write", lambda text, font: False)
    assert caption(turn) == "(move) place: left"
    monkeypatch.undo()
    assert caption(turn | {"instruction": ""}) == "(null edit)"
    assert caption(turn | {"instruction": "move it to the left"}) == "move it to the left"
    from PIL import ImageFont

    assert not can_write(turn["instruction"], ImageFont.load_default(12))  # Latin only
