"""The uncached forward: noisy frames behind a clean history, in one sequence.

Training learns from it, and the bidirectional baseline of the benchmark has no other.

Legend: B batch, F frames of the sequence, n noisy ones, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..memory.visibility import FrameView
from .transformer import TextContext

# (noisy frames [B, n, C, h, w], times [B, n] in 0..1000) -> flow of the same shape
SequenceDenoiser = Callable[[Tensor, Tensor], Tensor]


def sequence_denoiser(
    model: nn.Module,
    history: Tensor,
    text: Tensor | TextContext,
    views: tuple[FrameView, ...] | None = None,
    stride: int = 4,
) -> SequenceDenoiser:
    """Return the denoiser of n noisy frames behind a clean history [B, F - n, C, h, w].

    text [B, F, rows, E]; without `views` every frame sees all before it. Nothing here stops the gradient.
    """

    def denoiser(noisy: Tensor, times: Tensor) -> Tensor:
        sequence = torch.cat([history.to(noisy), noisy], dim=1)
        clean = torch.zeros(history.shape[:2], device=times.device)
        flow = model(sequence.transpose(1, 2), torch.cat([clean, times], dim=1), text, views, stride)
        return flow.transpose(1, 2)[:, history.shape[1] :]

    return denoiser
