"""A real ComfyUI for these tests: started once, driven over HTTP and websocket, stopped at the end.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python make test-comfyui

COMFYUI_PATH is the host's folder (without it: the ComfyUI that this pack is installed in, if it is), COMFYUI_PYTHON
the interpreter that runs it (without it: the one that runs pytest). COMFYUI_ARGS are given to the host as well.
"""

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "anchoredit_model" / "assets" / "sample.png"


@pytest.fixture(scope="session")
def image_file(host) -> Path:
    """The bundled sample in the host's input folder: of images that it does not know the model has to guess what is
    in them, and a guess magnifies rounding."""
    path = host.folder / "input" / "drawing.png"
    shutil.copyfile(SAMPLE, path)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
