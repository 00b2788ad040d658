"""Seeds and noise: each turn's noise comes from a generator of its own, on the CPU, so that devices agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .errors import AnchorEditError

_VARIATION_SEED_BYTES = 6  # so that a browser's number holds the seed of a variation


def turn_noise(shape: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """Draw noise for the start and then for every step that takes some, float32 on the CPU."""
    while True:
        yield torch.randn(tuple(shape), generator=generator)


def turn_generator(session_seed: int, turn: int) -> torch.Generator:
    """Return the generator of one turn's noise, always on the CPU, so that every device draws the same numbers."""
    digest = hashlib.sha256(f"anchoredit turn {turn} of {session_seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def variation_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of `count` variations of one turn: the turn's own, then hashes of it, 0 to 2^48 - 1.

    They do not depend on `count`, and neighbouring seeds have no variation in common.
    """
    if count < 1:
        raise AnchorEditError(f"the number of variations must be 1 or more, got {count}", "Ask for 1 or more")
    digests = (hashlib.sha256(f"anchoredit variant {number} of {seed}".encode()) for number in range(2, count + 1))
    return [seed, *(int.from_bytes(digest.digest()[:_VARIATION_SEED_BYTES], "big") for digest in digests)]
