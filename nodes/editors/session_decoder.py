"""Images of a session, and the last masked ones kept for the turns that follow.

A masked turn is composited over the image of the turn before, and that one, if masked, over the one before it:
without these every turn of a masked chain would decode all earlier turns again.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from torch import Tensor

from ...anchoredit_model.decoding import ImageCodec, check_vae, decode_turn
from ...anchoredit_model.memory.anchor_memory import AnchorMemory

_KEPT = 2  # a turn's and that of the turn before it, which is wanted again when the turn is changed


class DecodeCache:
    """Keep images [3, H, W] by turn and VAE; the two last used stay, and none outlives its turn or VAE."""

    def __init__(self):
        self._kept: deque[tuple[weakref.ref, weakref.ref, Tensor]] = deque(maxlen=_KEPT)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, turn, vae) -> Tensor | None:
        """Return the image, which counts as a use."""
        for index, (known_turn, known_vae, image) in enumerate(self._kept):
            if known_turn() is turn and known_vae() is vae:
                del self._kept[index]
                self.put(turn, vae, image)
                return image
        return None

    def put(self, turn, vae, image: Tensor) -> None:
        """Keep an image."""
        self._kept.append((weakref.ref(turn, self._forget), weakref.ref(vae, self._forget), image))

    def _forget(self, gone: weakref.ref) -> None:
        kept = [entry for entry in self._kept if gone is not entry[0] and gone is not entry[1]]
        self._kept.clear()
        self._kept.extend(kept)


class SessionDecoder:
    """Decode the turns of sessions by a VAE; `key` is the host's object that it wraps."""

    def __init__(self, vae: ImageCodec, key: Any, cache: DecodeCache):
        self.vae = vae
        self.key = key
        self.cache = cache

    def check(self, memory: AnchorMemory) -> None:
        """Refuse a session that another VAE made."""
        check_vae(self.vae, memory)

    def image(self, memory: AnchorMemory, turn: int | None = None, before: Tensor | None = None) -> Tensor:
        """Return the image [3, H, W] of a turn, as `decode_turn` does."""
        turn = memory.last if turn is None else turn
        entry = memory.rewind(turn).turns[-1]
        if entry.mask is None:
            return decode_turn(self.vae, memory, turn)
        self.check(memory)
        image = self.cache.get(entry, self.key)
        if image is None:
            before = self.image(memory, turn - 1) if before is None else before
            image = decode_turn(self.vae, memory, turn, before)
            self.cache.put(entry, self.key, image)
        return image
