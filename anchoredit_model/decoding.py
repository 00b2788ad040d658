"""From a session's latents to its images, at the input's own size."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .errors import AnchorEditError
from .geometry import composite
from .memory.anchor_memory import AnchorMemory

_FEATHER = 1 / 64  # of the image's shorter side, inside a mask's edge


class ImageCodec(Protocol):
    """Map images [B, 3, H, W] in 0..1 to latents [B, C, h, w] as the backbone takes them, and back."""

    @property
    def spatial_factor(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def latent_space(self) -> str:
        """Name the latents: those of another space must not be decoded."""
        ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@torch.no_grad()
def decode_turn(vae: ImageCodec, memory: AnchorMemory, turn: int | None = None, before: Tensor | None = None) -> Tensor:
    """Return the image [3, H, W] of a turn (default: the newest) at the input's own size; turn 0 is the source.

    A masked turn is composited over the image `before` it, which is decoded too if it is not given.
    """
    turn = memory.last if turn is None else turn
    if turn == 0:
        return memory.image
    check_vae(vae, memory)
    entry = memory.rewind(turn).turns[-1]
    decoded = vae.decode(entry.latent[None]).cpu()
    image = memory.geometry.from_work(decoded)[0]
    if entry.mask is None:
        return image
    before = decode_turn(vae, memory, turn - 1) if before is None else before
    feather = max(1, round(_FEATHER * min(image.shape[-2:])))
    return composite(image[None], before[None], entry.mask[None], feather)[0]


def check_vae(vae: ImageCodec, memory: AnchorMemory) -> None:
    """Refuse a session that another VAE made."""
    geometry, latent = memory.geometry, memory.turns[0].latent
    factor = vae.spatial_factor
    expected = (vae.latent_channels, geometry.work_height // factor, geometry.work_width // factor)
    if latent.shape != expected:
        raise AnchorEditError(
            f"the session's latents are {list(latent.shape)}, the VAE makes {list(expected)} of its image",
            "Use the model it was started with, VAE included",
        )
    if memory.latent_space and memory.latent_space != vae.latent_space:
        raise AnchorEditError(
            "the session's latents are from another VAE than this one",
            "Use the model it was started with, VAE included",
        )
