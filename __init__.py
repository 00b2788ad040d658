"""AnchorEdit as a ComfyUI pack: edit one image over many turns and have it stay the same image.

ComfyUI loads this file by path. Without ComfyUI there are no nodes: use `anchoredit_model` then.
"""

from importlib.util import find_spec
from pathlib import Path

__all__ = []

if find_spec("comfy_execution") is not None:
    from .nodes import comfy_entrypoint

    __all__ += ["comfy_entrypoint"]
    if (Path(__file__).parent / "web").is_dir():
        WEB_DIRECTORY = "./web"
        __all__ += ["WEB_DIRECTORY"]
