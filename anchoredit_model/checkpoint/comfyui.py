"""The bundled model under the names that ComfyUI knows: Wan's own, float32, Wan's own latent statistics.

The files have the layouts of diffusers and transformers, because the command line reads them with these libraries.
ComfyUI knows the VAE under the names of Wan's original code, and normalises latents by Wan's own mean and standard
deviation. The bundled VAE has others, so they are folded into its last and first 1x1 convolutions: what the folded
VAE encodes is normalised by ComfyUI to exactly the latents that the bundled model was trained on.

Legend: C latent channels.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import TINY
from ..config import EditConfig
from ..errors import AnchorEditError
from ..networks.vae import latent_space_id
from .loading import read_checkpoint

_RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_RESNET |= {"conv_shortcut": "shortcut"}
_LAYER = "|".join(_RESNET)
_PLAIN = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_PLAIN |= {f"{half}.conv_in": f"{half}.conv1" for half in ("encoder", "decoder")}
_PLAIN |= {f"{half}.norm_out": f"{half}.head.0" for half in ("encoder", "decoder")}
_PLAIN |= {f"{half}.conv_out": f"{half}.head.2" for half in ("encoder", "decoder")}
_BLOCKS_PER_LEVEL = 4  # of the decoder: three residual blocks and the upsampler


@dataclass(frozen=True)
class BundledModel:
    """Hold weights under ComfyUI's names, and what else its loaders need to know.

    preview_factors, preview_offset   map a latent to a colour in -1..1, [C][3] and [3]
    """

    transformer: dict[str, Tensor]
    edit: EditConfig
    vae: dict[str, Tensor]
    vae_width: int
    latent_space: str
    preview_factors: list[list[float]]
    preview_offset: list[float]
    text_encoder: dict[str, Tensor]
    text_config: dict[str, object]
    vocabulary: bytes


def read_bundled(mean: Tensor, std: Tensor, folder: Path = TINY) -> BundledModel:
    """Read the model in `folder`; `mean` and `std` [C] are those by which ComfyUI normalises latents."""
    if not (folder / "transformer").is_dir():
        raise AnchorEditError(f"the bundled model is missing in {folder}", "Install AnchorEdit again")
    checkpoint = read_checkpoint(folder / "transformer")
    vae_config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    preview = json.loads((folder / "vae" / "preview.json").read_text(encoding="utf-8"))
    vae = _float32(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    vae = {wan_vae_name(name): tensor for name, tensor in vae.items()}
    own_mean, own_std = (torch.tensor(vae_config[f"latents_{what}"]) for what in ("mean", "std"))
    text_config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    if text_config["dense_act_fn"] == "gelu_new":  # one function, two names
        text_config["dense_act_fn"] = "gelu_pytorch_tanh"
    return BundledModel(
        transformer=_float32(checkpoint.state_dict),
        edit=checkpoint.edit_config or EditConfig(),
        vae=fold_statistics(vae, own_mean, own_std, mean, std),
        vae_width=vae_config["base_dim"],
        latent_space=latent_space_id(vae_config["z_dim"], vae_config["latents_mean"], vae_config["latents_std"]),
        preview_factors=preview["factors"],
        preview_offset=preview["offset"],
        text_encoder=_float32(load_file(folder / "text_encoder" / "model.safetensors")),
        text_config=text_config,
        vocabulary=(folder / "text_encoder" / "spiece.model").read_bytes(),
    )


def wan_vae_name(name: str) -> str:
    """Return Wan's name of a weight of the VAE that diffusers calls `name`."""
    module, _, leaf = name.rpartition(".")
    if module in _PLAIN:
        return f"{_PLAIN[module]}.{leaf}"
    if match := re.fullmatch(rf"(encoder|decoder)\.mid_block\.resnets\.(\d)\.({_LAYER})", module):
        return f"{match[1]}.middle.{2 * int(match[2])}.{_RESNET[match[3]]}.{leaf}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(\w+)", module):
        return f"{match[1]}.middle.1.{match[2]}.{leaf}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.([\w.]+)", module):
        return f"encoder.downsamples.{match[1]}.{_RESNET.get(match[2], match[2])}.{leaf}"
    if match := re.fullmatch(rf"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.({_LAYER})", module):
        return f"decoder.upsamples.{_BLOCKS_PER_LEVEL * int(match[1]) + int(match[2])}.{_RESNET[match[3]]}.{leaf}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.([\w.]+)", module):
        return f"decoder.upsamples.{_BLOCKS_PER_LEVEL * (int(match[1]) + 1) - 1}.{match[2]}.{leaf}"
    raise AnchorEditError(f"the bundled VAE has a weight {name}, which Wan's has not", "Install AnchorEdit again")


def fold_statistics(
    vae: dict[str, Tensor], own_mean: Tensor, own_std: Tensor, mean: Tensor, std: Tensor
) -> dict[str, Tensor]:
    """Return the same VAE in raw latents of other statistics: z' = (z - own_mean) / own_std * std + mean, all [C]."""
    scale = std / own_std
    bias = mean - own_mean * scale
    channels = len(scale)
    out = dict(vae)
    # the last convolution of the encoder: its first C outputs are the mean of the posterior, the rest its variance
    weight, offset = vae["conv1.weight"].clone(), vae["conv1.bias"].clone()  # [2 C, 2 C, 1, 1, 1], [2 C]
    weight[:channels] *= scale[:, None, None, None, None]
    offset[:channels] = offset[:channels] * scale + bias
    out["conv1.weight"], out["conv1.bias"] = weight, offset
    # the first of the decoder undoes it
    weight = vae["conv2.weight"] / scale[None, :, None, None, None]  # [C, C, 1, 1, 1]
    out["conv2.weight"] = weight
    out["conv2.bias"] = vae["conv2.bias"] - weight[:, :, 0, 0, 0] @ bias
    return out


def _float32(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert to float32, which a small model can afford and which gives the same numbers on every machine."""
    return {name: tensor.float() for name, tensor in weights.items()}
