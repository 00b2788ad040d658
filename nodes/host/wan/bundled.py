"""The bundled model as MODEL, CLIP and VAE of the host's own kinds."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import torch
import torch.nn.functional as F
from torch import Tensor

from ....anchoredit_model.checkpoint.comfyui import read_bundled
from ....anchoredit_model.errors import AnchorEditError
from ....anchoredit_model.networks.text_encoder import TEXT_DIM
from ..edit_metadata import ATTACHMENT_KEY, EditMetadata
from ..latent_space import latent_statistics


def load_bundled():
    """Load MODEL, CLIP and VAE of the bundled model, in float32 and as the host's own kinds."""
    mean, std = latent_statistics(comfy.latent_formats.Wan21())
    parts = read_bundled(mean.flatten(), std.flatten())
    model: Any = comfy.sd.load_diffusion_model_state_dict(parts.transformer, model_options={"dtype": torch.float32})
    model.set_attachments(ATTACHMENT_KEY, EditMetadata(parts.edit, trained=True))
    latent_format = model.model.latent_format  # Wan's own suit Wan's VAE
    latent_format.latent_rgb_factors = parts.preview_factors
    latent_format.latent_rgb_factors_bias = parts.preview_offset
    latent_format.taesd_decoder_name = None
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.text_encoders.wan.WanT5Tokenizer, _SmallTextEncoder),
        tokenizer_data={"spiece_model": parts.vocabulary},
        model_options={"dtype": torch.float32, "umt5xxl_model_config": parts.text_config},
    )
    _check_complete("text encoder", clip.load_sd(parts.text_encoder)[0])
    vae = _small_vae(parts.vae, parts.vae_width)
    setattr(vae, ATTACHMENT_KEY, parts.latent_space)
    return model, clip, vae


class _SmallTextEncoder(comfy.text_encoders.wan.WanT5Model):
    """Encode with a umT5 of any width, whose rows fill the first columns of Wan's."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 - the host's signature
        super().__init__(device=device, dtype=dtype, model_options=model_options)

    def encode_token_weights(self, token_weight_pairs):
        rows, *rest = super().encode_token_weights(token_weight_pairs)
        return F.pad(rows, (0, TEXT_DIM - rows.shape[-1])), *rest


def _small_vae(weights: dict[str, Tensor], width: int):
    """Construct a Wan VAE narrower than Wan's; newer hosts read the width from the weights."""
    if "image_channels" in inspect.signature(comfy.ldm.wan.vae.WanVAE.__init__).parameters:
        return comfy.sd.VAE(sd=weights, dtype=torch.float32)
    return _SmallVAE(weights, width)


class _SmallVAE(comfy.sd.VAE):
    """Set the attributes that `comfy.sd.VAE` of 0.3.64 sets for Wan 2.1, with another width."""

    def __init__(self, weights: dict[str, Tensor], width: int):
        network = comfy.ldm.wan.vae.WanVAE(
            dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        _check_complete("VAE", network.load_state_dict(weights, strict=False)[0])
        scale = width / 96
        self.memory_used_encode = lambda shape, dtype: scale * 6000 * shape[3] * shape[4] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: scale * 7000 * shape[3] * shape[4] * 64 * dtype.itemsize
        self.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
        self.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
        self.upscale_index_formula = self.downscale_index_formula = (4, 8, 8)
        self.latent_dim, self.latent_channels, self.output_channels = 3, 16, 3
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: ((image + 1.0) / 2.0).clamp(0, 1)
        self.disable_offload = self.not_video = False
        self.extra_1d_channel = None
        self.crop_input = True
        self.working_dtypes = [torch.float32]
        self.vae_dtype = torch.float32
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = network.eval()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, self.device, comfy.model_management.vae_offload_device()
        )


def _check_complete(what: str, missing: list[str]) -> None:
    missing = [name for name in missing if not name.endswith("logit_scale")]
    if missing:
        raise AnchorEditError(f"the bundled {what} lacks {missing[0]}", "Install AnchorEdit again")
