"""Modules of the pack that need no ComfyUI, imported as the host imports them: as parts of one package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("", ".nodes", ".nodes.editors", ".nodes.host", ".nodes.host.sampling", ".nodes.host.wan")


def pack_module(name: str) -> ModuleType:
    """Import e.g. `nodes.host.paths` without running the packages' own `__init__`, which import the host."""
    for package in PACKAGES:
        full = f"anchoredit_pack{package}"
        if full not in sys.modules:
            module = ModuleType(full)
            module.__path__ = [str(ROOT.joinpath(*package.split(".")))]
            sys.modules[full] = module
    return importlib.import_module(f"anchoredit_pack.{name}")
