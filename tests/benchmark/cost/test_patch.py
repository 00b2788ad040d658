"""The patch benchmark says what is wrong with its options before it looks for a host's modules."""

from pathlib import Path

import pytest

from anchoredit_model.errors import AnchorEditError
from benchmark.__main__ import execute


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "must be the folder of ComfyUI"),
        (["--tokens", "1000"], "square number, got 1000"),
        (["--width", "100"], "multiple of 128"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: list[str], words: str):
    with pytest.raises(AnchorEditError, match=words):
        execute(["cost", "patch", "--host", str(tmp_path), *options])
