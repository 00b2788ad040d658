"""Training forwards: a history at t = 0 and, behind it, the noisy frames that learn.

Noisy turn i sees history frames 0..i-1, which is what it sees at inference, and has the instruction and the slot
that it has there; one forward so teaches every turn of a session (teacher forcing, as in language models). The
history may be the truth, degraded, or the model's own. Diffusion forcing (https://arxiv.org/abs/2407.01392) is
the case without a history: every frame of one sequence is noisy in its own way.

Legend: B batch, T turns, F frames of a forward, C latent channels, h w latent size, rows E text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.memory.visibility import FrameView, sequence_views
from anchoredit_model.networks.full_sequence import SequenceDenoiser, sequence_denoiser


def frame_texts(null: Tensor, instructions: Tensor) -> Tensor:
    """Return the texts of the frames [B, T + 1, rows, E], filled up with zero rows.

    null [rows, E], instructions [B, T, rows, E]. Frame 0 always has the null instruction, so that its K/V do not depend
    on the first turn.
    """
    rows = max(len(null), instructions.shape[2])
    null, instructions = (F.pad(text, (0, 0, 0, rows - text.shape[-2])) for text in (null, instructions))
    return torch.cat([null.expand(len(instructions), 1, -1, -1), instructions], dim=1)


def forcing_views(turns: int, policy: MemoryPolicy | None = None, slots: str = "bounded") -> tuple[FrameView, ...]:
    """Return views of 2T frames.

    History 0..T-1, then noisy turns 1..T, each seeing of the history what its turn sees.
    """
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
    """Return the flow of all noisy turns 1..T [B, T, C, h, w] at once, behind the history of frames 0..T-1.

    text [B, T + 1, rows, E] is the session's, see `frame_texts`.
    """
    both = torch.cat([text[:, :-1], text[:, 1:]], dim=1)
    return sequence_denoiser(model, history, both, forcing_views(history.shape[1], policy, slots), stride)
