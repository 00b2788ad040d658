"""A MODEL whose samplers see images of a session as the host's own reference latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class References:
    """Hold what a turn sees: `latents`, each [C, h, w], in order.

    method    the host's name of how their positions are numbered, None for the model's own
    guidance  embedded where a condition has none, None for a model that takes none
    """

    latents: Sequence[Tensor]
    space: LatentSpace
    method: str | None = None
    guidance: float | None = None

    def shown(self) -> dict[str, Any]:
        """Return the options of a condition that sees them."""
        if not self.latents:
            return {}
        samples = self.space.to_socket_exactly(torch.stack(tuple(self.latents)))
        options: dict[str, Any] = {"reference_latents": list(samples.split(1))}
        return options if self.method is None else {**options, "reference_latents_method": self.method}


def with_references(
    patcher,
    references: References,
    errors: Callable[[], AbstractContextManager],
    constraint: LatentConstraint | None = None,
):
    """Return a MODEL whose samplers see `references` in every condition that shows images.

    They go into the run's own copies of the conditions: the artist's CONDITIONING stays as it is, and the host counts
    them when it makes room. `errors` goes around the run; `constraint` (x0 [B, C, h, w] -> x0) is applied to every
    prediction.
    """
    shown = references.shown()

    def sample(executor, *arguments, **options):
        guider = executor.class_obj
        with errors():
            for name, conditions in guider.conds.items():
                for condition in conditions:
                    if references.guidance is not None:
                        condition.setdefault("guidance", references.guidance)
                if name == "negative" and "middle" in guider.conds:
                    continue  # of dual guidance, the branch that sees neither text nor images
                for condition in conditions:
                    _check_unset(name, condition)
                    condition.update(shown)
            if constraint is not None:
                add_constraint(constraint, references.space, guider.model_options["transformer_options"])
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
