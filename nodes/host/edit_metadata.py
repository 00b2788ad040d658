"""What the pack attaches to the host's objects: how a MODEL edits, which latents a VAE makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...anchoredit_model.checkpoint.layout import UNDISTILLED
from ...anchoredit_model.config import EditConfig

FACTS = "anchoredit"  # the name of our attachment on a MODEL, of our attribute on a VAE, of our wrappers


@dataclass(frozen=True)
class ModelFacts:
    """How a MODEL edits, and whether it says that it was trained to."""

    edit: EditConfig
    trained: bool = False


@dataclass(frozen=True)
class VAEFacts:
    """Which latents a VAE makes, and how the one model that they belong to edits."""

    latent_space: str
    edit: EditConfig = EditConfig()


def model_facts(patcher) -> ModelFacts:
    """What a MODEL carries; one that carries nothing is sampled as plain Wan, at the shift that the host knows."""
    found = patcher.get_attachment(FACTS)
    if found is None:
        shift = getattr(patcher.get_model_object("model_sampling"), "shift", UNDISTILLED.shift)
        found = ModelFacts(replace(UNDISTILLED, shift=float(shift)))
    return found


def with_facts(patcher, facts: ModelFacts):
    """The same MODEL, used as `facts` say; they stay with it through LoRA and other nodes."""
    changed = patcher.clone()
    changed.set_attachments(FACTS, facts)
    return changed
