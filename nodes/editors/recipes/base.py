"""What has to be known to edit with one family of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....anchoredit_model.config import MemoryPolicy
from ...host.sampling.guiders import Conditioning

# (CLIP, text, images [3, H, W] that the text encoder sees) -> CONDITIONING
Encode = Callable[[Any, str, Sequence[Tensor]], Conditioning]


@dataclass(frozen=True)
class Recipe:
    """Say how one family of editors is run. Numbers are those of the host's own templates.

    name               of the family, for people
    space              of its latents, a key of `host.latent_space.SPACES`
    tokenizers         classes of the CLIP's tokenizer that fit
    clip               what to load, for people
    encode             an instruction; `sees_images` if the text encoder is given the visible images too
    negative_sees      whether it is given them for the negative prompt, `negative_text`, as well
    cfg, image_cfg     guidance scales of the text and, for dual guidance, of the images
    guidance           embedded guidance, None if the model has none
    size_multiple      of the sides of a work image, `resolution` the side of the square whose area it has
    max_references     the most that the network takes or the vendor advises
    method             the host's name of how references are numbered, None for the model's own
    policy             what a turn sees by default
    newest_first       the order of the references
    assumption         what the MODEL does not tell, and what was taken, in one line for the node
    """

    name: str
    space: str
    tokenizers: tuple[str, ...]
    clip: str
    encode: Encode
    steps: int
    cfg: float
    sees_images: bool = False
    negative_sees: bool = True
    negative_text: str = ""
    image_cfg: float | None = None
    guidance: float | None = None
    sampler: str = "euler"
    scheduler: str = "simple"
    size_multiple: int = 16
    resolution: int = 1024
    max_references: int = 4
    method: str | None = None
    policy: MemoryPolicy = MemoryPolicy(anchor_frames=1, window=1)
    newest_first: bool = True
    assumption: str = ""


# (MODEL) -> recipe; raises AnchorEditError for what cannot edit
FindRecipe = Callable[[Any], Recipe]
