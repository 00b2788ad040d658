"""Latent previews: how often, how large, and in which colours.

A preview costs the host a resized JPEG and a message, about as long as a step of the bundled model takes.

Legend: C latent channels, h w latent size, H W picture size.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PREVIEW_SECONDS = 0.2  # from one preview to the next: more a second nobody sees
FACTOR = 8  # pixels of a picture per latent cell


def step_callback(previewer, show: Callable, check: Callable[[], None]) -> Callable[[int, int, Tensor], None]:
    """Called after every step: `show(step, steps, picture or None)`, then `check()`, which may raise.

    `previewer` is the host's, or None if the artist wants no previews. A picture is no larger than the result, and
    comes at most every `PREVIEW_SECONDS`; the first one only that long after the beginning.
    """
    shown = time.monotonic()

    def callback(step: int, steps: int, x0: Tensor) -> None:
        nonlocal shown
        picture, now = None, time.monotonic()
        if previewer is not None and now - shown >= PREVIEW_SECONDS:
            kind, image, largest = previewer.decode_latent_to_preview_image("JPEG", x0[None, :, None])
            picture, shown = (kind, image, min(largest, FACTOR * max(x0.shape[-2:]))), now
        show(step, steps, picture)
        check()

    return callback


def latent_colours(latents: Tensor, pictures: Tensor) -> tuple[list[list[float]], list[float]]:
    """The linear map latent -> colour in -1..1 that fits best: factors [C][3] and offset [3].

    latents [N, C, h, w], pictures [N, 3, 8 h, 8 w] in 0..1.
    """
    colours = F.avg_pool2d(pictures * 2 - 1, FACTOR).movedim(1, -1).reshape(-1, 3).double()
    cells = latents.movedim(1, -1).flatten(0, 2).double()
    solved = torch.linalg.lstsq(F.pad(cells, (0, 1), value=1.0), colours).solution  # [C + 1, 3]
    return solved[:-1].tolist(), solved[-1].tolist()
