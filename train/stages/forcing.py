"""Teacher forcing: a clean history at t = 0 and, behind it, all noisy turns in one forward.

Noisy turn i attends to history frames 0..i-1 and has the instruction and the slot that it has at inference, so that one
forward trains every turn of a session, as in language models. The history may be the truth, degraded, or the model's
own. Without a history the same forward is diffusion forcing (https://arxiv.org/abs/2407.01392): every frame of one
sequence has its own noise level.

Shapes: B batch, T turns, F frames of a forward, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.memory.visibility import FrameView, sequence_views
from anchoredit_model.networks.full_sequence import SequenceDenoiser, sequence_denoiser


def forcing_views(turns: int, policy: MemoryPolicy | None = None, slots: str = "bounded") -> tuple[FrameView, ...]:
    """Return the views of 2T frames: the history 0..T-1, then noisy turns 1..T, which see what they do at inference."""
    views = sequence_views(turns + 1, policy, slots)
    return views[:-1] + views[1:]


def turns_denoiser(
    model: nn.Module,
    history: Tensor,
    text: Tensor,
    policy: MemoryPolicy | None = None,
    slots: str = "bounded",
    stride: int = 4,
) -> SequenceDenoiser:
    """Return the denoiser of all noisy turns 1..T [B, T, C, h, w] at once, behind a history of frames 0..T-1.

    text [B, T + 1, rows, E] is the session's, the null instruction first.
    """
    both = torch.cat([text[:, :-1], text[:, 1:]], dim=1)
    return sequence_denoiser(model, history, both, forcing_views(history.shape[1], policy, slots), stride)
