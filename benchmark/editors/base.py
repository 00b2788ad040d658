"""The editor under test as a protocol, and the options on the command line that editors may take."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

_SEED_STEP = 1_000_003  # between the noise seeds of one session under two sampling seeds


def noise_seed(session: int, sampling_seed: int) -> int:
    """Return the seed of all noise of the session with this number."""
    return session + _SEED_STEP * sampling_seed


class Editor(Protocol):
    """Edit one image over many turns. A new editor is a class with these members and an entry in `EDITORS`."""

    @abstractmethod
    def start(self, image: Tensor, session: int) -> None:
        """Start a new session from an image [3, H, W] in 0..1; `session` is its number, which seeds the noise."""

    @abstractmethod
    def edit(self, instruction: str) -> Tensor:
        """Return the next image, [3, H, W] in 0..1 of the source's size; "" is a null edit."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that the images depend on, as plain JSON values; a stopped run continues only with the same."""
        return {}

    @property
    def cache_bytes(self) -> int:
        """Bytes cached of the session so far, images and latents not counted."""
        return 0


@dataclass(frozen=True)
class EditorOptions:
    """Hold the options of an editor; None is its default."""

    model: Path | None = None
    steps: int | None = None
    cfg: float | None = None
    dtype: str | None = None
    device: str | None = None
    window: int | None = None
    anchor_frames: int | None = None
    history: str | None = None
    slot_mode: str | None = None
    sampling_seed: int | None = None
    server: str | None = None
    workflow: Path | None = None
    images: Path | None = None
