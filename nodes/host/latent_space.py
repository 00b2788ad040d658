"""The kinds of latents that editors share, and how sockets and VAEs of the host hold them.

Legend: B batch, C channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.networks.vae import latent_space_id

_NEIGHBOURS = 3  # float32 numbers tried on either side of a converted one


@dataclass(frozen=True)
class LatentSpace:
    """Name a latent format together with the VAE family that makes it: equal formats may belong to different VAEs.

    id              in sessions and their files
    format          the host's latent format, by which a model's latents become a socket's
    spatial_factor  pixels of an image per latent cell
    vae             what to load, for people
    """

    id: str
    format: Any
    spatial_factor: int
    vae: str

    @property
    def channels(self) -> int:
        return self.format.latent_channels

    @property
    def is_video(self) -> bool:
        """Tell whether sockets hold a frame axis: [B, C, 1, h, w]."""
        return self.format.latent_dimensions == 3

    def with_frame_axis(self, latents: Tensor) -> Tensor:
        """Shape [B, C, h, w] as the host's samplers do."""
        return latents[:, :, None] if self.is_video else latents

    def without_frame_axis(self, latents: Tensor) -> Tensor:
        """Shape the samplers' [B, C, (1,) h, w] as [B, C, h, w]."""
        return latents[:, :, 0] if self.is_video else latents

    def to_socket(self, latents: Tensor) -> Tensor:
        """Convert latents [B, C, h, w] as the model takes them to those of a LATENT socket."""
        return self.format.process_out(self.with_frame_axis(latents))

    def to_socket_exactly(self, latents: Tensor) -> Tensor:
        """Convert latents so that the way back gives the very same ones, where float32 has a number for it.

        The next few numbers up and down are tried: the conversion rounds, and a reference should reach the model as the
        session holds it.
        """
        best = self.to_socket(latents.double()).float()
        least = (self.from_socket(best) - latents).abs()
        for end in (torch.inf, -torch.inf):
            samples, limit = best, torch.full_like(best, end)
            for _ in range(_NEIGHBOURS):
                samples = torch.nextafter(samples, limit)
                error = (self.from_socket(samples) - latents).abs()
                best = torch.where(self.with_frame_axis(error < least), samples, best)
                least = torch.minimum(error, least)
        return best

    def from_socket(self, samples: Tensor) -> Tensor:
        """Convert the samples of a LATENT socket to [B, C, h, w] float32 as the model takes them."""
        return self.without_frame_axis(self.format.process_in(samples.float()))

    def from_latent(self, latent: Mapping[str, Any]) -> Tensor:
        """Return the one image of a LATENT as the model takes it, [C, h, w]."""
        samples = latent["samples"]
        shape = [1, self.channels, 1, "h", "w"] if self.is_video else [1, self.channels, "h", "w"]
        fits = samples.ndim == len(shape) and samples.shape[:-2] == tuple(shape[:-2])
        if not fits:
            expected = "[" + ", ".join(map(str, shape)) + "]"
            raise AnchorEditError(
                f"the LATENT must be {expected}, got {list(samples.shape)}",
                "Give one image's, as Apply Memory makes it",
            )
        return self.from_socket(samples)[0]

    def empty_latent(self, shape: torch.Size) -> dict[str, Tensor]:
        """Return an empty LATENT for an image's latent of shape [C, h, w]."""
        device = comfy.model_management.intermediate_device()
        return {"samples": self.with_frame_axis(torch.zeros(shape, device=device)[None])}


def latent_statistics(latent_format) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation by which the host normalises latents."""
    return latent_format.latents_mean, latent_format.latents_std


def _wan21() -> LatentSpace:
    space = comfy.latent_formats.Wan21()
    mean, std = ([round(value, 4) for value in t.flatten().tolist()] for t in latent_statistics(space))
    return LatentSpace(latent_space_id(16, mean, std), space, 8, "Wan 2.1's or Qwen-Image's VAE")


def _spaces() -> dict[str, LatentSpace]:
    spaces = {"wan21": _wan21(), "flux": LatentSpace("flux", comfy.latent_formats.Flux(), 8, "FLUX.1's VAE (ae)")}
    flux2 = getattr(comfy.latent_formats, "Flux2", None)  # older hosts lack it
    if flux2 is not None:
        spaces["flux2"] = LatentSpace("flux2", flux2(), 16, "FLUX.2's VAE")
        spaces["mage"] = LatentSpace("mage", flux2(), 16, "Mage-Flow's VAE")
    return spaces


SPACES: Mapping[str, LatentSpace] = _spaces()


def space_of(latent_space: str) -> LatentSpace:
    """Return the space of a session's latents; Wan 2.1's shape for those of the bundled VAE, whose numbers differ."""
    return next((space for space in SPACES.values() if space.id == latent_space), SPACES["wan21"])
