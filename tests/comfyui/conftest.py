"""A real ComfyUI for these tests: started once, driven over HTTP and websocket, stopped at the end.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python make test-comfyui

COMFYUI_PATH is the host's folder (without it: the ComfyUI that this pack is installed in, if it is), COMFYUI_PYTHON
the interpreter that runs it (without it: the one that runs pytest).
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path.insert(0, str(HERE))  # for the modules that the tests share


def _comfyui() -> Path | None:
    named = os.environ.get("COMFYUI_PATH")
    if named:
        return Path(named).expanduser()
    around = Path(os.path.abspath(PACK)).parents[1]  # custom_nodes/<pack> -> the host
    return around if (around / "comfy_api").is_dir() else None


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory):
    path = _comfyui()
    if path is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH (and COMFYUI_PYTHON) to run these tests")
    if not (path / "main.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH is {path}, which holds no main.py: name ComfyUI's own folder")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    from comfyui_server import Server

    with Server(path, python, PACK, HERE / "probe", tmp_path_factory.mktemp("comfyui")) as server:
        yield server


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
