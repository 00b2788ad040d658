"""What an editor under test is, and the options of those that have some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

_SEED_STEP = 1_000_003  # between the noise of one session under two sampling seeds


def noise_seed(session: int, sampling_seed: int) -> int:
    """Return the seed of all noise of a session, by its number."""
    return session + _SEED_STEP * sampling_seed


class Editor(ABC):
    """An editor under test; another one is a subclass of this and a line in `EDITORS`."""

    @abstractmethod
    def start(self, image: Tensor, session: int) -> None:
        """Return a new session from an image [3, H, W] in 0..1. `session` is its number, which the noise depends on."""

    @abstractmethod
    def edit(self, instruction: str) -> Tensor:
        """Return the next image, [3, H, W] in 0..1 of the source's size; "" asks for nothing."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its images depend on, as plain JSON values: an interrupted run goes on with the same only."""
        return {}

    @property
    def cache_bytes(self) -> int:
        """Bytes that it holds in order to remember the session so far, images and latents not counted."""
        return 0


@dataclass(frozen=True)
class EditorOptions:
    """What the command line says about the editor; None: its default."""

    model: Path | None = None
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    device: str | None = None
    window: int | None = None
    anchor_frames: int | None = None
    history: str | None = None
    slots: str | None = None
    sampling_seed: int | None = None
    server: str | None = None
    workflow: Path | None = None
    images: Path | None = None
