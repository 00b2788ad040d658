"""What a MODEL tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def network_config(patcher: Any) -> dict[str, Any]:
    """Return the configuration that the host has detected for a MODEL's network."""
    return patcher.model.model_config.unet_config


def file_name(patcher: Any) -> str:
    """Return the name of the file that the host's own loader has read, in lower case; "" if it does not say."""
    loaded_by = getattr(patcher, "cached_patcher_init", None)  # (loader, arguments, ...) on newer hosts
    arguments = loaded_by[1] if loaded_by else ()
    return next((Path(value).name.lower() for value in arguments if isinstance(value, str)), "")
