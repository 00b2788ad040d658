"""The anchor memory: an edit session as an immutable value.

A memory is a tuple of turns, the first being the anchor (the source image). `commit` returns a new memory that shares
every turn with the old one, so two turns made from one memory are two branches, and going back is using an older
memory. The keys and values (K/V) of its turns are not part of the value: `KVCacheManager` derives them from it, and
recomputes what was evicted.

Legend: C latent channels, h w latent size, T valid text rows, E text width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import KVCacheConfig, MemoryPolicy
from ..errors import AnchorEditError
from ..geometry import Geometry
from ..samplers import LatentConstraint
from .visibility import FrameView, frame_view


@dataclass(frozen=True, eq=False)
class Turn:
    """Hold one image of a session. Turns and memories are equal only to themselves, as a host's caches need it.

    latent       [C, h, w] float32 on the CPU, clean
    instruction  what to change; "" for the anchor and for null edits
    text         [T, E] float32, the instruction's embedding without padding rows
    seed         of the turn's noise (None for the anchor)
    settings     of the sampler: plain JSON values
    mask         [1, H, W] float32 at the input's size, or None
    policy       the memory's at commit: what this turn has seen, whatever later turns may see
    """

    latent: Tensor
    instruction: str
    text: Tensor
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None
    policy: MemoryPolicy | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent, self.text, self.mask) if tensor is not None)

    @cached_property
    def latent_digest(self) -> str:
        """Hash the content, once per turn, so that a long session's cache keys cost no more than a short one's."""
        return tensor_digest(self.latent)

    @cached_property
    def text_digest(self) -> str:
        return tensor_digest(self.text)


@dataclass(frozen=True, eq=False)
class AnchorMemory:
    """Hold turns 0..n of a session, the source image [3, H, W] in 0..1, its geometry and what turns may see."""

    turns: tuple[Turn, ...]
    image: Tensor
    geometry: Geometry
    policy: MemoryPolicy = MemoryPolicy()
    kv_cache: KVCacheConfig = KVCacheConfig()
    latent_space: str = ""  # fingerprint of the VAE that the latents belong to
    model: str = ""  # fingerprint of the model that made the last turn; "" before the first

    @classmethod
    def start(
        cls,
        latent: Tensor,
        null_text: Tensor,
        image: Tensor,
        geometry: Geometry,
        policy: MemoryPolicy | None = None,
        kv_cache: KVCacheConfig | None = None,
        latent_space: str = "",
    ) -> AnchorMemory:
        """Start a session with its anchor alone: latent [C, h, w] and the embedding [T, E] of the empty text."""
        anchor = Turn(latent.float().cpu(), "", null_text.float().cpu())
        return cls(
            (anchor,),
            image.float().cpu(),
            geometry,
            policy or MemoryPolicy(),
            kv_cache or KVCacheConfig(),
            latent_space,
        )

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def last(self) -> int:
        """Return the number of the newest turn; 0 is the anchor."""
        return len(self.turns) - 1

    @property
    def nbytes(self) -> int:
        """Count the bytes of the session itself, without K/V."""
        return self.image.nbytes + sum(turn.nbytes for turn in self.turns)

    def commit(self, turn: Turn, model: str = "") -> AnchorMemory:
        """Return a new memory with one more turn; this one stays as it is."""
        self._check_latent(turn.latent)
        kept = replace(turn, latent=turn.latent.float().cpu(), text=turn.text.float().cpu(), policy=self.policy)
        return replace(self, turns=(*self.turns, kept), model=model or self.model)

    def rewind(self, turn: int) -> AnchorMemory:
        """Return the memory as it was after turn number `turn`; 0 goes back to the source."""
        if not 0 <= turn <= self.last:
            raise AnchorEditError(f"turn must be 0 to {self.last}, got {turn}", f"Choose 0 to {self.last}")
        return replace(self, turns=self.turns[: turn + 1])

    def with_policy(self, **options: Any) -> AnchorMemory:
        """Return the same turns under another policy; options as in `MemoryPolicy`, None keeps the present value."""
        return replace(self, policy=self.policy.with_options(**options))

    def with_prompt(self, text: Tensor) -> AnchorMemory:
        """Return the same images as if `text` [T, E] had been the prompt of each: the history of a negative prompt."""
        return replace(self, turns=tuple(replace(turn, text=text) for turn in self.turns))

    def mask_constraint(self, mask: Tensor) -> LatentConstraint:
        """Return a constraint that restores the newest latent outside a mask: x0 [..., C, h, w] -> x0.

        mask [1, H, W] has the input's size; a latent cell is inside if any of its pixels is above 0. Raises
        AnchorEditError if the mask has another size or is black everywhere.
        """
        geometry, before = self.geometry, self.turns[-1].latent
        if mask.shape != (1, geometry.input_height, geometry.input_width):
            raise AnchorEditError(
                f"the mask is {mask.shape[-1]}x{mask.shape[-2]}, the image "
                f"{geometry.input_width}x{geometry.input_height}",
                "Draw the mask at the image's size",
            )
        if not (mask > 0).any():
            raise AnchorEditError("the mask is black everywhere", "Paint white where the edit may change the image")
        work = geometry.to_work((mask > 0).float()[None])
        inside = F.max_pool2d(work, geometry.work_height // before.shape[-2])[0] > 0  # [1, h, w]

        def constrain(x0: Tensor) -> Tensor:
            self._check_latent(x0)
            return torch.where(inside.to(x0.device), x0, before.to(x0))

        return constrain

    def _check_latent(self, latent: Tensor) -> None:
        if latent.shape[-3:] != self.turns[0].latent.shape:
            raise AnchorEditError(
                f"the turn's latent is {list(latent.shape[-3:])}, the session's {list(self.turns[0].latent.shape)}",
                "Use the model and size the session was started with",
            )

    def view(self, slot_mode: str = "bounded") -> FrameView:
        """Return what the next turn sees."""
        return frame_view(len(self.turns), self.policy, slot_mode)


def tensor_digest(tensor: Tensor) -> str:
    """Hash a CPU tensor's shape and bytes."""
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
