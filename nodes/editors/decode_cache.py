"""The last images that masks were put into, kept for the turns that follow.

A masked turn's image lies in the image of the turn before, and that one, if masked, in the one before it: without
these every turn of a masked chain would decode all the turns before it again.
"""

from __future__ import annotations

import weakref
from collections import deque

from torch import Tensor

_KEPT = 2  # a turn's and that of the turn before it, which is wanted again when the turn is changed


class Images:
    """Images [3, H, W] by turn and VAE; the two last used stay, and none outlives its turn or VAE."""

    def __init__(self):
        self._kept: deque[tuple[weakref.ref, weakref.ref, Tensor]] = deque(maxlen=_KEPT)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, turn, vae) -> Tensor | None:
        """The image, which counts as a use."""
        for place, (known_turn, known_vae, image) in enumerate(self._kept):
            if known_turn() is turn and known_vae() is vae:
                del self._kept[place]
                self.put(turn, vae, image)
                return image
        return None

    def put(self, turn, vae, image: Tensor) -> None:
        self._kept.append((weakref.ref(turn, self._forget), weakref.ref(vae, self._forget), image))

    def _forget(self, gone: weakref.ref) -> None:
        kept = [entry for entry in self._kept if gone is not entry[0] and gone is not entry[1]]
        self._kept.clear()
        self._kept.extend(kept)
