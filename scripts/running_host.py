"""The host of the tests, for scripts that write files from what a host says of its nodes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfyui"))

from comfyui_graphs import MUTED, WIDGETS, api_graph, node, succeed
from comfyui_server import Server, server

__all__ = ["MUTED", "WIDGETS", "Server", "api_graph", "node", "running_host", "succeed"]


@contextmanager
def running_host() -> Iterator[Server]:
    """Run the host that COMFYUI_PATH and COMFYUI_PYTHON name, with empty folders of its own."""
    with tempfile.TemporaryDirectory() as folder:
        host = server(Path(folder))
        if host is None:
            raise SystemExit("no ComfyUI: set COMFYUI_PATH (and COMFYUI_PYTHON)")
        with host:
            yield host
