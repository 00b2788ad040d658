"""The artist's VAE as an image codec.

Legend: B batch, C channels, H W image size, h w latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...anchoredit_model.errors import AnchorEditError
from .edit_metadata import ATTACHMENT_KEY
from .latent_space import LatentSpace


class HostVAE:
    """Encode and decode with the artist's VAE, images one by one, because a video VAE takes a batch for a video."""

    def __init__(self, vae, space: LatentSpace):
        dimensions, factor = getattr(vae, "latent_dim", 2), vae.spacial_compression_encode()
        found = (vae.latent_channels, factor, dimensions == 3)
        if found != (space.channels, space.spatial_factor, space.is_video):
            kind = "a video VAE" if dimensions == 3 else "an image VAE"
            raise AnchorEditError(
                f"the VAE must be {space.vae}, got {kind} of {vae.latent_channels} channels at 1/{factor} size",
                f"Load {space.vae}",
            )
        self.vae = vae
        self.space = space
        # the bundled VAE has statistics of its own
        self.latent_space: str = getattr(vae, ATTACHMENT_KEY, space.id)

    @property
    def spatial_factor(self) -> int:
        return self.space.spatial_factor

    @property
    def latent_channels(self) -> int:
        return self.space.channels

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in 0..1 to latents [B, C, h, w] as the model takes them."""
        return self.space.from_socket(torch.cat([self.vae.encode(image.movedim(0, -1)[None]) for image in images]))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images [B, 3, H, W] in 0..1."""
        images = self.vae.decode(self.space.to_socket(latents))
        if self.space.is_video:  # [B, 1, H, W, 3]
            images = images[:, 0]
        return images.movedim(-1, 1).float().clamp(0, 1)
