"""Diffusion models from the artist's files."""

from __future__ import annotations

import comfy.sd
import folder_paths

from ...anchoredit_model.checkpoint.loading import outline, read_checkpoint
from ...anchoredit_model.errors import AnchorEditError
from .edit_metadata import EditMetadata, attach_edit_metadata
from .wan.model import text_to_video_network


def model_files() -> list[str]:
    """List the files in the host's folders for diffusion models."""
    return folder_paths.get_filename_list("diffusion_models")


def model_path(name: str) -> str:
    """Return the path of such a file."""
    path = folder_paths.get_full_path("diffusion_models", name)
    if path is None or name not in model_files():
        raise AnchorEditError(
            f"model file '{name}' does not exist", "Put it into models/diffusion_models, or choose another file"
        )
    return path


def load_model(path: str):
    """Load a MODEL from a file of any layout that AnchorEdit knows, with how it was trained to edit if it says so.

    What the host knows goes through the host's own loader as it is, fp8 included; other layouts are renamed first.
    """
    file = outline(path)
    try:
        if file.wan_file:
            model = comfy.sd.load_diffusion_model(path)
        else:
            model = comfy.sd.load_diffusion_model_state_dict(read_checkpoint(path).state_dict)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise AnchorEditError(
            f"ComfyUI cannot load {path} ({reason})", "Choose a Wan 2.1 text-to-video file"
        ) from error
    if model is None:
        raise AnchorEditError(f"ComfyUI finds no diffusion model in {path}", "Choose a Wan 2.1 text-to-video file")
    text_to_video_network(model)
    return (
        model if file.edit_config is None else attach_edit_metadata(model, EditMetadata(file.edit_config, trained=True))
    )
