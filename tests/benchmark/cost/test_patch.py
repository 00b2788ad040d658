"""The patch benchmark says what is wrong with its options before it looks for a host's modules."""

from pathlib import Path

import pytest

from anchoredit_model.errors import AnchorEditError
from benchmark.cost.patch import main


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "holds no ComfyUI"), (["--tokens", "1000"], "no square"), (["--width", "100"], "multiple of 128")],
)
def test_mistakes_are_told(tmp_path: Path, options: list[str], words: str):
    with pytest.raises(AnchorEditError, match=words):
        main(["--host", str(tmp_path), *options])
