"""A MODEL whose samplers see images of a session as the host's own reference latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ....anchoredit_model.errors import AnchorEditError
from ....anchoredit_model.samplers import LatentConstraint
from ..edit_metadata import ATTACHMENT_KEY
from ..latent_space import LatentSpace
from .mask_constraint import add_constraint
from .memory_wrapper import without_memory

_OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def with_references(
    patcher,
    references: Sequence[Tensor],
    space: LatentSpace,
    method: str | None,
    errors: Callable[[], AbstractContextManager],
    constraint: LatentConstraint | None = None,
    guidance: float | None = None,
):
    """Return a MODEL whose samplers see `references` [C, h, w], in order, in every condition that shows images.

    They go into the run's own copies of the conditions: the artist's CONDITIONING stays as it is, and the host counts
    them when it makes room. `method` is the host's name of how their positions are numbered, None for the model's
    own. `errors` goes around the run; `constraint` (x0 [B, C, h, w] -> x0) is applied to every prediction. `guidance`
    is embedded where a condition has none.
    """
    shown: dict[str, Any] = {}
    if references:
        shown["reference_latents"] = list(space.to_socket(torch.stack(tuple(references))).split(1))
    if references and method is not None:
        shown["reference_latents_method"] = method

    def sample(executor, *arguments, **options):
        guider = executor.class_obj
        with errors():
            for name, conditions in guider.conds.items():
                for condition in conditions:
                    if guidance is not None:
                        condition.setdefault("guidance", guidance)
                if name == "negative" and "middle" in guider.conds:
                    continue  # of dual guidance, the branch that sees neither text nor images
                for condition in conditions:
                    _check_unset(name, condition)
                    condition.update(shown)
            if constraint is not None:
                add_constraint(constraint, space, guider.model_options["transformer_options"])
            return executor(*arguments, **options)

    patched = without_memory(patcher).clone()
    patched.add_wrapper_with_key(_OUTER_SAMPLE, ATTACHMENT_KEY, sample)
    return patched


def _check_unset(name: str, condition: dict[str, Any]) -> None:
    if condition.get("reference_latents"):
        raise AnchorEditError(
            f"the {name} CONDITIONING has reference latents of its own",
            "Connect the text encoder without ReferenceLatent, and without a VAE: the session gives the images",
        )
