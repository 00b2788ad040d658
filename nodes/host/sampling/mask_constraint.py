"""A mask in the host's samplers: every predicted clean latent is restored outside of it."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
from torch import Tensor

from ....anchoredit_model.samplers import LatentConstraint
from ..edit_metadata import ATTACHMENT_KEY
from ..latent_space import LatentSpace

_PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE


def add_constraint(constraint: LatentConstraint, space: LatentSpace, transformer_options: dict[str, Any]) -> None:
    """Apply `constraint` (x0 [B, C, h, w] -> x0) to every prediction of a run, whatever the guider and the sampler."""

    def constrained(executor, *arguments, **options) -> Tensor:
        x0 = space.without_frame_axis(executor(*arguments, **options))
        return space.with_frame_axis(constraint(x0))

    comfy.patcher_extension.add_wrapper_with_key(_PREDICT_NOISE, ATTACHMENT_KEY, constrained, transformer_options)
