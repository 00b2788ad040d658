"""The editors, by the host's class of MODEL."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .base import Editor, Runtime
from .causal_wan import CausalWanEditor
from .recipes.registry import NO_REFERENCES, RECIPES, model_kinds
from .reference import ReferenceEditor
from .session import Networks

# comfy.model_base class -> editor; a subclass without an entry of its own takes its nearest ancestor's
EDITORS: Mapping[str, Callable[[Runtime, Networks, Callable[[str], None]], Editor]] = {
    "WAN21": CausalWanEditor,
    **dict.fromkeys((*RECIPES, *NO_REFERENCES), ReferenceEditor),
}


def editor_of(runtime: Runtime, networks: Networks, notify: Callable[[str], None]) -> Editor:
    """Return the editor for the MODEL of `networks`; refuse one that no editor knows."""
    networks.require("model")
    kinds = model_kinds(networks.model)
    editor = next((EDITORS[kind] for kind in kinds if kind in EDITORS), ReferenceEditor)
    return editor(runtime, networks, notify)
