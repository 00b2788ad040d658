"""A MODEL patched for one sampler run: it sees a session's K/V, inside a mask if there is one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from math import ceil
from typing import Any

import comfy.patcher_extension

from ....anchoredit_model.samplers import LatentConstraint
from ..edit_metadata import ATTACHMENT_KEY
from ..latent_space import SPACES
from ..sampling.mask_constraint import add_constraint
from ..sampling.memory_wrapper import without_memory
from .attention import MemoryAttention

_Wrappers = comfy.patcher_extension.WrappersMP


def with_memory(
    patcher,
    attend: Callable[[Any], MemoryAttention],
    errors: Callable[[], AbstractContextManager],
    constraint: LatentConstraint | None = None,
):
    """Return a MODEL whose samplers see a memory.

    When sampling starts, `attend` is asked for the attention with the very MODEL that samples: LoRA and other nodes
    that follow have been applied by then. What it returns lives as long as the run. `errors` goes around the run.
    `constraint` (x0 [B, C, h, w] -> x0) is applied to every prediction, whatever the guider and the sampler.
    """

    def sample(executor, *arguments, **options):
        guider = executor.class_obj  # its model_options are this run's own
        with errors():
            attention = attend(guider.model_patcher)
            here, add = guider.model_options["transformer_options"], comfy.patcher_extension.add_wrapper_with_key
            add(_Wrappers.PREPARE_SAMPLING, ATTACHMENT_KEY, partial(_reserve, attention.nbytes), here)
            add(_Wrappers.DIFFUSION_MODEL, ATTACHMENT_KEY, attention, here)
            if constraint is not None:
                add_constraint(constraint, SPACES["wan21"], here)
            return executor(*arguments, **options)

    patched = without_memory(patcher).clone()
    patched.add_wrapper_with_key(_Wrappers.OUTER_SAMPLE, ATTACHMENT_KEY, sample)
    return patched


def _reserve(nbytes: int, executor, patcher, noise_shape, *arguments, **options):
    """Load the weights so that `nbytes` more stay free: the host takes them for more frames of the latent."""
    batch, channels, frames, *size = noise_shape
    each = patcher.model.memory_required([batch, channels, 1, *size])
    return executor(patcher, [batch, channels, frames + ceil(nbytes / each), *size], *arguments, **options)
