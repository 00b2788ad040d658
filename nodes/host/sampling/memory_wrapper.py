"""The wrapper by which a MODEL sees a session, whatever kind of editor it is."""

from __future__ import annotations

import comfy.patcher_extension

from ..edit_metadata import ATTACHMENT_KEY

_OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def without_memory(patcher):
    """Return the MODEL without the session that Apply Memory gave it, with what was patched into it since."""
    if not patcher.get_wrappers(_OUTER_SAMPLE, ATTACHMENT_KEY):
        return patcher
    plain = patcher.clone()
    plain.remove_wrappers_with_key(_OUTER_SAMPLE, ATTACHMENT_KEY)
    return plain
