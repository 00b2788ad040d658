"""The editors, by the host's class of MODEL."""

from __future__ import annotations

from collections.abc import Callable

from ...anchoredit_model.errors import AnchorEditError
from .base import Editor, Runtime
from .causal_wan import CausalWanEditor
from .session import Networks

# comfy.model_base class -> editor; a subclass without an entry of its own takes its nearest ancestor's
EDITORS = {"WAN21": CausalWanEditor}


def editor_of(runtime: Runtime, networks: Networks, notify: Callable[[str], None]) -> Editor:
    """Return the editor for the MODEL of `networks`; refuse one that no editor knows."""
    networks.require("model")
    kinds = [kind.__name__ for kind in type(networks.model.model).__mro__]
    editor = next((EDITORS[kind] for kind in kinds if kind in EDITORS), None)
    if editor is None:
        raise AnchorEditError(
            f"the MODEL is {kinds[0]}, which AnchorEdit cannot edit with", "Load Wan 2.1 text-to-video"
        )
    return editor(runtime, networks, notify)
