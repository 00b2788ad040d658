"""`python -m benchmark cost patch` runs on the host's own network; what it finds is no test's business."""

import json
import statistics
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_patch_is_timed_beside_the_native_forward(host, tmp_path):
    report = tmp_path / "patch.json"
    command = [host.command[0], "-m", "benchmark", "cost", "patch", "--host", str(host.comfyui), "--out", str(report)]
    command += "--tokens 16 --frames 2 --width 128 --ffn 128 --layers 2 --repeats 3".split()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    ratios = [
        seconds["patched"] / (seconds["native"] - seconds["shorter"] + seconds["longer"]) for seconds in found["rounds"]
    ]
    assert len(ratios) == 3
    assert found["ratio"]["median"] == pytest.approx(statistics.median(ratios))
    assert f"longer): {statistics.median(ratios):.3f}" in done.stdout
