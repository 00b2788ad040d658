"""The artist's VAE, and latents as the host's sockets hold them.

Legend: B batch, H W image size, h w latent size.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.networks.vae import latent_space_id
from .edit_metadata import ATTACHMENT_KEY


class HostVAE:
    """Encode and decode with the artist's VAE, images one by one, because a Wan VAE takes a batch for a video."""

    spatial_factor = 8
    latent_channels = 16

    def __init__(self, vae):
        if getattr(vae, "latent_dim", 2) != 3 or vae.latent_channels != self.latent_channels:
            raise AnchorEditError(
                f"the VAE must make Wan 2.1's 16-channel video latents, got {vae.latent_channels} channels",
                "Load Wan 2.1's VAE",
            )
        self.vae = vae
        self.format = comfy.latent_formats.Wan21()
        mean, std = ([round(value, 4) for value in t.flatten().tolist()] for t in latent_statistics(self.format))
        own = latent_space_id(self.latent_channels, mean, std)
        self.latent_space = getattr(vae, ATTACHMENT_KEY, own)  # the bundled VAE has statistics of its own

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in 0..1 to latents [B, 16, h, w] as the model takes them."""
        raw = [self.vae.encode(image.movedim(0, -1)[None]) for image in images]  # each [1, 16, 1, h, w]
        return self.format.process_in(torch.cat(raw).float())[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, 16, h, w] to images [B, 3, H, W] in 0..1."""
        images = self.vae.decode(self.format.process_out(latents[:, :, None]))  # [B, 1, H, W, 3]
        return images[:, 0].movedim(-1, 1).float().clamp(0, 1)


def model_latent(latent: dict[str, Tensor]) -> Tensor:
    """Return a LATENT [1, 16, 1, h, w] as the model takes it, [16, h, w]."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[0] != 1 or samples.shape[2] != 1:
        raise AnchorEditError(
            f"the LATENT is {list(samples.shape)}", "Give one image's, as Apply Memory makes it [1, 16, 1, h, w]"
        )
    return comfy.latent_formats.Wan21().process_in(samples)[0, :, 0].float()


def empty_latent(shape: torch.Size) -> dict[str, Tensor]:
    """Return an empty LATENT for an image's latent of shape [16, h, w]."""
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(shape, device=device)[None, :, None]}


def latent_statistics(latent_format) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation by which the host normalises latents."""
    return latent_format.latents_mean, latent_format.latents_std
