"""`python -m` of each package: a command that it does not know is a usage error, and asking for help is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("package", ["anchoredit_model", "train", "benchmark"])
def test_unknown_commands_are_usage_errors(package):
    for arguments, code in ((["paint"], 2), ([], 2), (["--help"], 0)):
        program = [sys.executable, "-m", package, *arguments]
        done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == code and f"usage: python -m {package}" in done.stdout + done.stderr, done
        assert code == 0 or (done.stdout == "" and "Traceback" not in done.stderr)
