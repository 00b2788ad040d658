"""The recipes by the host's class of MODEL, and the models that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....anchoredit_model.errors import AnchorEditError
from ...host.edit_metadata import recipe_overrides
from .base import FindRecipe, Recipe
from .boogu import BOOGU
from .flux2 import flux2_recipe
from .joy_image import JOY_IMAGE
from .kontext import kontext_recipe
from .longcat import LONGCAT
from .mage_flow import MAGE_FLOW
from .omnigen2 import OMNIGEN2
from .qwen_image import qwen_recipe

# comfy.model_base class -> recipe, or what finds it; a class without an entry takes its nearest ancestor's
RECIPES: Mapping[str, Recipe | FindRecipe] = {
    "QwenImage": qwen_recipe,
    "Flux": kontext_recipe,
    "Flux2": flux2_recipe,
    "Omnigen2": OMNIGEN2,
    "LongCatImage": LONGCAT,
    "Boogu": BOOGU,
    "MageFlow": MAGE_FLOW,
    "JoyImage": JOY_IMAGE,
}
# Subclasses of the above, and models that also edit, that take no reference latents.
NO_REFERENCES: Mapping[str, str] = {
    "Chroma": "Chroma, which ignores references",
    "ChromaRadiance": "Chroma Radiance, which ignores references",
    "HiDream": "HiDream, which takes its image in another way",
    "HiDreamO1": "HiDream-O1, which takes its images in another way",
    "Lumina2": "Lumina 2 or Z-Image, which takes no references",
    "HunyuanImage21": "HunyuanImage 2.1, which takes no references",
}


def model_kinds(patcher: Any) -> list[str]:
    """Return the names of a MODEL's class and its ancestors, nearest first."""
    return [kind.__name__ for kind in type(patcher.model).__mro__]


def recipe_of(patcher: Any) -> Recipe:
    """Return the recipe of a MODEL with what an artist has set; refuse one that cannot edit by references."""
    return replace(_found(patcher), **recipe_overrides(patcher))


def _found(patcher: Any) -> Recipe:
    for kind in model_kinds(patcher):
        if kind in NO_REFERENCES:
            raise AnchorEditError(f"the MODEL is {NO_REFERENCES[kind]}", "Load one of the editors in the README")
        if kind in RECIPES:
            found = RECIPES[kind]
            return found if isinstance(found, Recipe) else found(patcher)
    raise AnchorEditError(
        f"the MODEL is {model_kinds(patcher)[0]}, which AnchorEdit cannot edit with",
        "Load one of the editors in the README",
    )
