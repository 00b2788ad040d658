"""A real ComfyUI for these tests: started once, driven over HTTP and websocket, stopped at the end.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python make test-comfyui

COMFYUI_PATH is the host's folder (without it: the ComfyUI that this pack is installed in, if it is), COMFYUI_PYTHON
the interpreter that runs it (without it: the one that runs pytest). COMFYUI_ARGS are given to the host as well.
"""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for the modules that the tests share


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory):
    from comfyui_server import server

    named = server(tmp_path_factory.mktemp("comfyui"))
    if named is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH (and COMFYUI_PYTHON) to run these tests")
    with named:
        yield named


@pytest.fixture(scope="session")
def picture_file(host) -> Path:
    """A drawing in the host's input folder."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), (240, 220, 180))
    ImageDraw.Draw(image).ellipse((34, 40, 94, 100), fill=(200, 40, 40))
    path = host.folder / "input" / "drawing.png"
    image.save(path)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
