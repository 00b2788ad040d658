"""What the nodes use of the host, checked once, before anything of it is imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

OLDEST = "0.3.64"  # ComfyUI, the oldest that the tests run on
NEEDS = (
    "comfy_api.latest.ComfyExtension",
    "comfy_api.latest.io.Schema",
    "comfy_api.latest.ui.SavedImages",
    "comfy_execution.graph_utils.GraphBuilder",
    "comfy_execution.utils.get_executing_context",
    "comfy.cli_args.args.disable_metadata",
    "comfy.latent_formats.Flux",
    "comfy.latent_formats.Wan21",
    "comfy.ldm.modules.attention.wrap_attn",  # the hook of `optimized_attention_override`
    "comfy.ldm.wan.model.WanModel._forward",  # inside the wrappers of kind DIFFUSION_MODEL
    "comfy.ldm.wan.vae.WanVAE",
    "comfy.model_management.throw_exception_if_processing_interrupted",
    "comfy.model_patcher.ModelPatcher.get_attachment",
    "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key",
    "comfy.model_patcher.create_model_options_clone",
    "comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL",
    "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",
    "comfy.patcher_extension.WrappersMP.PREDICT_NOISE",
    "comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING",
    "comfy.samplers.CFGGuider.inner_set_conds",
    "comfy.samplers.KSAMPLER",
    "comfy.samplers.calculate_sigmas",
    "comfy.samplers.sampler_object",
    "comfy.sd.load_diffusion_model_state_dict",
    "comfy.supported_models_base.ClipTarget",
    "comfy.text_encoders.wan.WanT5Model",
    "folder_paths.get_save_image_path",
    "latent_preview.get_previewer",
    "server.PromptServer.send_progress_text",
)


def check_host(needs: Iterable[str] = NEEDS) -> None:
    """Raise ImportError, one line with the remedy, if the host lacks any of `needs`."""
    lacking = [name for name in needs if not _exists(name)]
    if lacking:
        version = getattr(importlib.import_module("comfyui_version"), "__version__", "?")
        raise ImportError(
            f"AnchorEdit runs on ComfyUI {OLDEST} or newer; this one ({version}) lacks {', '.join(lacking)}: "
            "update ComfyUI, and AnchorEdit as well if ComfyUI is new"
        )


def _exists(name: str) -> bool:
    """Whether a module, or what its attributes lead to, exists."""
    parts = name.split(".")
    found, modules = None, len(parts)
    while found is None and modules:
        try:
            found = importlib.import_module(".".join(parts[:modules]))
        except ModuleNotFoundError:
            modules -= 1
    for part in parts[modules:]:
        found = getattr(found, part, None)
    return found is not None
