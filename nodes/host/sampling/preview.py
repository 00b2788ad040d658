"""Progress with latent previews: how often, and how large.

A preview costs the host an enlarged JPEG and a message, which is a good part of a step of the bundled model.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

PREVIEW_SECONDS = 0.2  # from one preview to the next: more a second nobody sees


def step_callback(
    previewer, show: Callable, check: Callable[[], None], factor: int = 8
) -> Callable[[int, int, Tensor], None]:
    """Return a callback for every step: `show(step, steps, image or None)`, then `check()`, which may raise.

    `previewer` is the host's, or None if the artist wants no previews. An image is no larger than the result, and
    comes at most every `PREVIEW_SECONDS`; the first one only that long after the beginning. x0 is shaped as the host's
    samplers do, with `factor` pixels per latent cell.
    """
    shown = time.monotonic()

    def callback(step: int, steps: int, x0: Tensor) -> None:
        nonlocal shown
        image, now = None, time.monotonic()
        if previewer is not None and now - shown >= PREVIEW_SECONDS:
            kind, pil, largest = previewer.decode_latent_to_preview_image("JPEG", x0)
            image, shown = (kind, pil, min(largest, factor * max(x0.shape[-2:]))), now
        show(step, steps, image)
        check()

    return callback
