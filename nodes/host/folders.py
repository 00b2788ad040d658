"""The host's folders for sessions and exports."""

from __future__ import annotations

from pathlib import Path

import comfy.cli_args
import folder_paths
from torch import Tensor

from ...anchoredit_model.errors import AnchorEditError
from .paths import NewFiles, SessionFiles, check_new


def session_files() -> SessionFiles:
    """Return the session files in the host's folders."""
    return SessionFiles(Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()))


def new_files(prefix: str, image: Tensor) -> NewFiles:
    """Return where files with a `filename_prefix` go by the host's own rules; make the folder. `image` is [3, H, W]."""
    what, (height, width) = f"filename_prefix '{prefix}'", image.shape[-2:]
    check_new(prefix, what)
    output = folder_paths.get_output_directory()
    try:
        folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    except Exception as error:  # a full disk, a folder that leads out by a link; for the latter, Exception itself
        reason = str(error).strip().partition("\n")[0]
        raise AnchorEditError(
            f"ComfyUI makes no folder for {what} ({reason})", "Choose another name, or a folder that has room"
        ) from error
    return NewFiles(Path(folder), subfolder, stem, number)


def metadata_wanted() -> bool:
    """Say whether images may carry what made them (--disable-metadata)."""
    return not comfy.cli_args.args.disable_metadata
