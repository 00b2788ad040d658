"""How a MODEL edits, attached to the host's object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...anchoredit_model.checkpoint.loading import UNDISTILLED
from ...anchoredit_model.config import EditConfig

ATTACHMENT_KEY = "anchoredit"  # names our attachment on a MODEL, our attribute on a VAE, our wrappers
_RECIPE_KEY = "anchoredit_recipe"  # names the attachment of a native editor


@dataclass(frozen=True)
class EditMetadata:
    """Say how a MODEL edits, and whether it is known to be trained for it."""

    edit: EditConfig
    trained: bool = False


def edit_metadata(patcher) -> EditMetadata:
    """Return what a MODEL carries; one that carries nothing is sampled as plain Wan, at the shift of the host."""
    found = patcher.get_attachment(ATTACHMENT_KEY)
    if found is None:
        shift = getattr(patcher.get_model_object("model_sampling"), "shift", UNDISTILLED.shift)
        found = EditMetadata(replace(UNDISTILLED, shift=float(shift)))
    return found


def attach_edit_metadata(patcher, metadata: EditMetadata):
    """Return a clone of the MODEL that edits so; LoRA and other nodes keep the attachment."""
    changed = patcher.clone()
    changed.set_attachments(ATTACHMENT_KEY, metadata)
    return changed


def recipe_overrides(patcher) -> Mapping[str, Any]:
    """Return the fields of a native editor's recipe that an artist has set on a MODEL."""
    return patcher.get_attachment(_RECIPE_KEY) or {}


def attach_recipe_overrides(patcher, overrides: Mapping[str, Any]):
    """Return a clone of the MODEL with `overrides` over those it has; LoRA and other nodes keep them."""
    changed = patcher.clone()
    changed.set_attachments(_RECIPE_KEY, {**recipe_overrides(patcher), **overrides})
    return changed
