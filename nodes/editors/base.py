"""The interface between the nodes and the editing backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...anchoredit_model.memory.anchor_memory import AnchorMemory
from ...anchoredit_model.memory.kv_store import KVStore
from ..host.latent_space import space_of
from ..host.object_ids import ObjectIds
from ..host.vae import HostVAE
from ..host.vram import kv_cache_budget
from .session import MemorySettings, Networks, Session
from .session_decoder import DecodeCache, SessionDecoder

MASK_KEY = "anchoredit_mask"  # on a LATENT, which the host's nodes hand on with all that is on it
NULL_EDIT = "The instruction is empty: a null edit, the image is generated again as it is."


@dataclass(frozen=True)
class Runtime:
    """Hold what outlives a run, one per process: K/V, the numbers that name models, decoded images."""

    store: KVStore = field(default_factory=lambda: KVStore(kv_cache_budget()))
    object_ids: ObjectIds = field(default_factory=ObjectIds)
    decode_cache: DecodeCache = field(default_factory=DecodeCache)
    work_images: DecodeCache = field(default_factory=DecodeCache)

    def decoder(self, session: Session) -> SessionDecoder:
        """Return what decodes a session with its own VAE."""
        networks = session.current_networks
        networks.require("vae")
        vae = HostVAE(networks.vae, space_of(session.memory.latent_space))
        return SessionDecoder(vae, networks.vae, self.decode_cache)

    def work_image(self, vae: HostVAE, key: Any, memory: AnchorMemory, turn: int) -> Tensor:
        """Return what the latent of a turn shows, [3, h, w] at the work size; `key` is the host's VAE."""
        if turn == 0:
            return memory.geometry.to_work(memory.image[None])[0]
        entry = memory.turns[turn]
        image = self.work_images.get(entry, key)
        if image is None:
            image = vae.decode(entry.latent[None])[0].cpu()
            self.work_images.put(entry, key, image)
        return image


@dataclass(frozen=True)
class TurnSettings:
    """Say how to sample a turn; None takes the model's own. `mask` [1, H, W] is 1 where the edit may change."""

    steps: int | None = None
    cfg: float | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class SamplerInputs:
    """Hold what the host's own sampling nodes need for a turn, by the names of their sockets."""

    model: Any
    latent: dict[str, Any]
    noise: Any
    sampler: Any
    sigmas: Tensor


class Editor(Protocol):
    """Edit with `networks`. Each method that adds turns returns a new session and leaves the given one alone.

    notify  called with what an artist should know about the turn, a line each
    """

    networks: Networks
    notify: Callable[[str], None]

    def start(self, image: Tensor, settings: MemorySettings | None) -> Session:
        """Start a session from a source image [3, H, W]."""
        ...

    def turn(self, session: Session, instruction: str, seed: int, settings: TurnSettings) -> Session:
        """Make the next turn."""
        ...

    def variations(
        self, session: Session, instruction: str, seed: int, count: int, settings: TurnSettings
    ) -> tuple[Session, ...]:
        """Make `count` candidates for the next turn."""
        ...

    def apply_memory(
        self, session: Session, conditioning: Any, seed: int, mask: Tensor | None, errors: Callable
    ) -> SamplerInputs:
        """Prepare the next turn for the host's samplers; `errors` is a context manager around what runs later."""
        ...

    def commit(
        self, session: Session, latent: dict[str, Any], conditioning: Any, instruction: str, mask: Tensor | None
    ) -> Session:
        """Add what the host's samplers made as the next turn."""
        ...

    def cost(self, settings: MemorySettings, size: tuple[int, int] | None) -> str:
        """Say what turns cost in memory for an image of `size` (height, width), None for the model's own."""
        ...
