"""What is on the wire between nodes: a session with the networks that edit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...anchoredit_model.config import KVCacheConfig, MemoryPolicy
from ...anchoredit_model.errors import AnchorEditError
from ...anchoredit_model.memory.anchor_memory import AnchorMemory

NETWORKS = {"model": "diffusion model", "clip": "text encoder", "vae": "VAE"}


@dataclass(frozen=True, eq=False)
class Networks:
    """Hold the host's MODEL, CLIP and VAE; None where there is none."""

    model: Any = None
    clip: Any = None
    vae: Any = None

    def with_overrides(self, model=None, clip=None) -> Networks:
        """Return the networks with those that are given instead of these."""
        if model is None and clip is None:
            return self
        return replace(self, model=self.model if model is None else model, clip=self.clip if clip is None else clip)

    def require(self, *names: str) -> None:
        """Refuse to go on without the networks called `names`."""
        for name in names:
            if getattr(self, name) is None:
                raise AnchorEditError(
                    f"the session has no {name.upper()}",
                    f"Load the {NETWORKS[name]} and connect it to Load Session, or to this node",
                )


@dataclass(frozen=True)
class MemorySettings:
    """Hold what the ANCHOR_POLICY socket carries: what turns see, and where its K/V lie."""

    policy: MemoryPolicy = MemoryPolicy()
    kv_cache: KVCacheConfig = KVCacheConfig()


@dataclass(frozen=True, eq=False)
class Session:
    """Hold an anchor memory, and for each of its turns the networks that make the turns after it.

    Sessions are immutable and equal only to themselves: the host hands one object to all consumers.
    """

    memory: AnchorMemory
    networks: tuple[Networks, ...]

    @property
    def current_networks(self) -> Networks:
        """Return the networks for the next turn."""
        return self.networks[-1]

    def extended(self, memory: AnchorMemory, networks: Networks) -> Session:
        """Return the session with one more turn, made by `networks`."""
        return Session(memory, (*self.networks, networks))

    def rewind(self, turn: int) -> Session:
        """Return the session as it was after turn number `turn`, networks included."""
        return Session(self.memory.rewind(turn), self.networks[: turn + 1])

    def with_settings(self, settings: MemorySettings | None) -> Session:
        """Return the session under other settings for the turns to come."""
        if settings is None:
            return self
        return replace(self, memory=replace(self.memory, policy=settings.policy, kv_cache=settings.kv_cache))


def loaded_session(memory: AnchorMemory, networks: Networks) -> Session:
    """Return a session from a file, all turns of which continue with the same networks."""
    return Session(memory, (networks,) * len(memory))
