"""The Wan 2.1 VAE for single images, for use without ComfyUI.

Every image is a one-frame video encoded by itself, so a causal 3-D convolution sees zero padding in all but the
last slice of its kernel. `to_image_convolutions` keeps that slice as a 2-D convolution: the same numbers, a third of
the work. Files keep Wan's 3-D layout, so stock diffusers and ComfyUI load them.

Sources: Wan 2.1, https://arxiv.org/abs/2503.20314; diffusers' `AutoencoderKLWan`,
https://huggingface.co/docs/diffusers/api/models/autoencoder_kl_wan

Legend: B batch, C channels, H and W height and width in pixels, h = H / 8 and w = W / 8 in latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..errors import AnchorEditError

# diffusers' AutoencoderKLWan, whose annotations differ from what it returns
AutoencoderKLWan: TypeAlias = Any
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CONFIG_NAME = "config.json"


class OneFrameConv(nn.Module):
    """Apply a causal 3-D convolution to a first frame, for which only the last temporal slice of its kernel counts.

    `weight` is [out, in, kh, kw]. `past` [out, in, kt - 1, kh, kw] holds the slices that a first frame never meets,
    for saving; it is None where the kernel has one slice.
    """

    past: Tensor | None

    def __init__(self, conv: Any):
        """Take over the weights of a `WanCausalConv3d`."""
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[:, :, -1].clone(memory_format=torch.channels_last))
        self.bias = conv.bias
        past = conv.weight.detach()[:, :, :-1]
        self.register_buffer("past", past.clone() if past.shape[2] else None, persistent=False)
        self.stride = conv.stride[1:]
        # WanCausalConv3d moves its padding into `_padding`, in F.pad's order: (left, right, top, bottom, before, 0).
        self.padding = (conv._padding[2], conv._padding[0])

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """Map [B, in, 1, H, W] to [B, out, 1, H', W']; diffusers passes earlier frames as `cache`: there are none."""
        return F.conv2d(x.squeeze(2), self.weight, self.bias, self.stride, self.padding).unsqueeze(2)

    def video_weight(self) -> Tensor:
        """Return the 3-D kernel [out, in, kt, kh, kw] as Wan's files store it."""
        last = self.weight.detach().unsqueeze(2)
        return (last if self.past is None else torch.cat([self.past, last], dim=2)).contiguous()


def to_image_convolutions(model: AutoencoderKLWan, zero_past: bool = False) -> AutoencoderKLWan:
    """Replace, in place, every causal 3-D convolution that a single frame passes through by its 2-D equivalent.

    The `time_conv`s of the resampling layers start at the second frame: they stay, for saving only. `zero_past`
    zeroes all weights that only later frames would meet, for a VAE trained on images alone.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                # Not `model.to(memory_format=...)`: it refuses the 5-D kernels that stay.
                child.weight.data = child.weight.data.to(memory_format=torch.channels_last)
            if not isinstance(child, WanCausalConv3d):
                continue
            if name != "time_conv":
                child = OneFrameConv(child)
                setattr(parent, name, child)
            if zero_past:
                unseen = [child.past] if isinstance(child, OneFrameConv) else [*child.parameters()]
                for tensor in unseen:
                    if tensor is not None:
                        nn.init.zeros_(tensor)
    return model


def video_state_dict(model: AutoencoderKLWan) -> dict[str, Tensor]:
    """Return the state dict of the stock 3-D model, which undoes `to_image_convolutions`."""
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, OneFrameConv):
            state[f"{name}.weight"] = module.video_weight()
    return state


class ImageVAE:
    """Map images [B, 3, H, W] in 0..1 to normalised latents [B, 16, h, w] and back, each image by itself.

    `model` is a diffusers `AutoencoderKLWan`, which becomes 2-D in place.
    """

    spatial_factor = 8

    def __init__(self, model: AutoencoderKLWan):
        self.model = to_image_convolutions(model).eval()

    @property
    def latent_space(self) -> str:
        """Name the latents: those of another space must not be decoded."""
        config = self.model.config
        return latent_space_id(self.latent_channels, config.latents_mean, config.latents_std)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> ImageVAE:
        """Load a local diffusers folder (config.json and safetensors). Nothing is downloaded or unpickled."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config_file, weights_file = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
        for file in (config_file, weights_file):
            if not file.is_file():
                raise AnchorEditError(
                    f"VAE folder '{folder}' has no {file.name}", "Give a diffusers AutoencoderKLWan folder"
                )
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AnchorEditError(f"VAE config '{config_file}' is not JSON ({error})", "Download it again") from None
        found = config.get("_class_name") if isinstance(config, dict) else None
        if found != "AutoencoderKLWan" or config.get("patch_size") or config.get("is_residual"):
            raise AnchorEditError(
                f"VAE config '{config_file}' must describe an AutoencoderKLWan of Wan 2.1, got {found}",
                "Give a Wan 2.1 AutoencoderKLWan",
            )
        try:
            # cast here, because diffusers warns about `model.to(dtype)`
            state = {name: tensor.to(device, dtype) for name, tensor in load_file(weights_file).items()}
        except (SafetensorError, OSError) as error:
            raise AnchorEditError(
                f"VAE file '{weights_file}' is damaged ({error})", "Copy or download it again"
            ) from None
        try:
            # on the meta device, because the file is about to replace the weights
            with torch.device("meta"):
                model: Any = AutoencoderKLWan.from_config(config)
            for name in ("latents_mean", "latents_std"):
                torch.tensor(model.config[name], dtype=torch.float32).reshape(model.config.z_dim)
            model.load_state_dict(state, assign=True)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise AnchorEditError(
                f"VAE file '{weights_file}' does not fit its {CONFIG_NAME} ({reason})", "Download both again"
            ) from None
        return cls(model)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write Wan's own 3-D layout, which stock `AutoencoderKLWan` loads; `dtype` None keeps that of the weights."""
        from safetensors.torch import save_file

        state = {name: tensor.to("cpu", dtype or self.dtype) for name, tensor in video_state_dict(self.model).items()}
        with atomic_write(Path(folder) / WEIGHTS_NAME, "VAE", make_folder=True) as unfinished:
            save_file(state, unfinished, metadata={"format": "pt"})
        with atomic_write(Path(folder) / CONFIG_NAME, "VAE config") as unfinished:
            unfinished.write_text(self.model.to_json_string(), encoding="utf-8")

    @property
    def latent_channels(self) -> int:
        """Return the channels of a latent; 16 for Wan 2.1."""
        return self.model.config.z_dim

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, in which images are computed."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> ImageVAE:
        """Move the weights, in place."""
        self.model.to(device)
        return self

    def enable_tiling(self) -> None:
        """Process large images in overlapping tiles, as diffusers does: less memory, slightly different numbers."""
        self.model.enable_tiling()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in 0..1 to float32 latents [B, 16, h, w]: posterior means, about N(0, 1)."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8:
            raise AnchorEditError(
                f"images for the VAE must be [B, 3, H, W], H and W multiples of 8, got {list(images.shape)}",
                "Pad or crop them",
            )
        scaled = images.to(self.device, torch.float32) * 2 - 1
        frames = scaled.to(self.dtype, memory_format=torch.channels_last).unsqueeze(2)
        if self.model.use_tiling:
            moments = self.model.encode(frames).latent_dist.parameters
        else:
            moments = encode_moments(self.model, frames)
        mean, std = self._statistics()
        return (moments[:, : self.latent_channels, 0].float() - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, 16, h, w] to float32 images [B, 3, H, W], clamped to 0..1."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise AnchorEditError(
                f"latents for the VAE must be [B, {self.latent_channels}, h, w], got {list(latents.shape)}",
                "Give latents of this VAE",
            )
        mean, std = self._statistics()
        raw = (latents.to(self.device, torch.float32) * std + mean).to(self.dtype, memory_format=torch.channels_last)
        if self.model.use_tiling:
            frames = self.model.decode(raw.unsqueeze(2)).sample
        else:
            frames = decode_frames(self.model, raw.unsqueeze(2))
        return (frames[:, :, 0].float() / 2 + 0.5).clamp(0, 1).contiguous()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return latents_mean and latents_std of the config, each [1, C, 1, 1]."""
        config = self.model.config
        values = torch.tensor([config.latents_mean, config.latents_std], dtype=torch.float32, device=self.device)
        mean, std = values[:, None, :, None, None]
        return mean, std


def encode_moments(model: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Encode frames [B, 3, 1, H, W] in -1..1 to mean and log-variance of the posterior [B, 2 C, 1, h, w].

    Without diffusers' feature caches, which would keep every activation for a second frame that never comes.
    """
    return model.quant_conv(model.encoder(frames))


def decode_frames(model: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode raw latents [B, C, 1, h, w] to frames [B, 3, 1, H, W], about -1..1."""
    return model.decoder(model.post_quant_conv(latents))


def latent_space_id(channels: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """Hash what distinguishes one VAE's latents from another's: their channels and statistics."""
    return hashlib.sha256(json.dumps([channels, list(mean), list(std)]).encode()).hexdigest()[:16]
