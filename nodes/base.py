"""What all nodes share: the sockets of our own, the runtime, and errors that begin with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anchoredit_model.errors import AnchorEditError
from .editors.causal_wan import Runtime

MemorySocket = io.Custom("ANCHOR_MEMORY")  # an AnchorMemory
PolicySocket = io.Custom("ANCHOR_POLICY")  # a MemoryPolicy
CATEGORY = "AnchorEdit"
_NO_MASK = (64, 64)  # the size of the empty mask that Load Image gives for an image without transparency
_PARTS = {"model": "diffusion model", "clip": "text encoder", "vae": "VAE"}


class AnchorEditNode(io.ComfyNode):
    """A node says what it does in `run`; the extension gives it the process's `runtime`."""

    runtime: ClassVar[Runtime]

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        with remedies_first():
            for name, part in _PARTS.items():
                if name in inputs and inputs[name] is None:  # what a checkpoint lacks, its loader gives as None
                    raise AnchorEditError(f"the input {name} is empty", f"Load the {part} from a file of its own")
            return cls.run(**inputs)


@contextmanager
def remedies_first() -> Iterator[None]:
    """Errors of what is done inside begin with the remedy: the host shows little more than the beginning."""
    try:
        yield
    except AnchorEditError as error:
        raise RemedyFirst(error.problem, error.remedy) from error


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of a turn's noise, which the host may change after every run."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


class RemedyFirst(AnchorEditError):
    """The same mistake as a node tells it: the host shows little more than the beginning of an error."""

    def __str__(self) -> str:
        return f"{self.remedy}. {self.problem[:1].upper()}{self.problem[1:]}." if self.remedy else self.problem


def mask_input(tooltip: str, extra_dict: dict | None = None) -> io.Mask.Input:
    """An optional mask at the source image's size; every node has it as its last input."""
    return io.Mask.Input("mask", optional=True, tooltip=tooltip, extra_dict=extra_dict)


def to_mask(mask: Tensor | None) -> Tensor | None:
    """A MASK of one image [1, H, W], 1 where the edit may change the image."""
    if mask is None:
        return None
    if mask.ndim == 2:  # some packs give it without a batch
        mask = mask[None]
    if mask.shape[0] != 1:
        raise AnchorEditError(f"the MASK is a batch of {mask.shape[0]}", "Give one mask")
    if mask.shape[1:] == _NO_MASK and not mask.any():
        raise AnchorEditError(
            "the MASK is 64x64 and empty, which is what Load Image gives for an image without transparency",
            "Paint a mask over the image in Load Image (right click on the node, Open in MaskEditor)",
        )
    return mask.float().cpu()


def to_host_image(image: Tensor) -> Tensor:
    """An image [3, H, W] as IMAGE [1, H, W, 3]."""
    return image.movedim(0, -1)[None].contiguous()


def from_host_image(image: Tensor) -> Tensor:
    """An IMAGE of one image [1, H, W, 3 or 4] as [3, H, W]."""
    if image.shape[0] != 1:
        raise AnchorEditError(
            f"the IMAGE is a batch of {image.shape[0]}", "Choose one image of it (node 'Image From Batch')"
        )
    return image[0, :, :, :3].movedim(-1, 0).to(torch.float32).contiguous()
