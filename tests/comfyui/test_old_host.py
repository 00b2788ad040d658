"""A host that lacks what the nodes use says so in one line when the pack is imported, and only then."""

import os
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
LOAD = """
import sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # before a folder with a module `utils` is added to the path, as the host itself does
import importlib.util
import comfy.patcher_extension
del comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
spec = importlib.util.spec_from_file_location("a_pack", PATH + "/__init__.py", submodule_search_locations=[PATH])
pack = sys.modules["a_pack"] = importlib.util.module_from_spec(spec)
try:
    spec.loader.exec_module(pack)
except ImportError as error:
    print("said:", error)
"""


def test_what_the_host_lacks_is_said_in_one_line(host):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    code = LOAD.replace("PATH", repr(str(PACK)))
    done = subprocess.run([python, "-c", code], cwd=host.comfyui, capture_output=True, text=True, timeout=600)
    said = [line for line in done.stdout.splitlines() if line.startswith("said:")]
    assert len(said) == 1, done.stderr[-3000:]
    assert "runs on ComfyUI 0.3.64 or newer" in said[0]
    assert "lacks comfy.patcher_extension.WrappersMP.OUTER_SAMPLE: update ComfyUI" in said[0]
