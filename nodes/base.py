"""What all nodes share: sockets of our own, the runtime, conversions, and errors that begin with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from comfy_api.latest import io
from torch import Tensor

from ..anchoredit_model.errors import AnchorEditError
from .editors.base import Editor, Runtime
from .editors.registry import editor_of
from .editors.session import NETWORKS, Networks, Session
from .host.ui import NodeText

SessionSocket = io.Custom("ANCHOR_MEMORY")  # a Session
PolicySocket = io.Custom("ANCHOR_POLICY")  # MemorySettings
CATEGORY = "AnchorEdit"
_NO_MASK = (64, 64)  # the size of the empty mask that Load Image gives for an image without transparency


class AnchorEditNode(io.ComfyNode):
    """Run `run` of a node; the extension gives it the process's `runtime`."""

    runtime: ClassVar[Runtime]
    run: ClassVar[Callable[..., io.NodeOutput]]

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        with node_errors():
            for name, network in NETWORKS.items():
                if name in inputs and inputs[name] is None:  # what a checkpoint lacks, its loader gives as None
                    raise AnchorEditError(f"the input {name} is empty", f"Load the {network} from a file of its own")
            return cls.run(**inputs)

    @classmethod
    def editor(cls, session: Session, model=None, clip=None) -> Editor:
        """Return the editor for a session's next turn; `model` and `clip` replace the session's from there on."""
        return cls.editor_for(session.current_networks.with_overrides(model, clip))

    @classmethod
    def editor_for(cls, networks: Networks) -> Editor:
        """Return the editor for networks; its notes are shown on the node."""
        return editor_of(cls.runtime, networks, cls.text().add)

    @classmethod
    def text(cls) -> NodeText:
        """Return the text on the running node."""
        return NodeText(cls.hidden.unique_id)


class NodeError(AnchorEditError):
    """Show an error with its remedy first: the host shows little more than the beginning of an error."""

    def __str__(self) -> str:
        return f"{self.remedy}. {self.problem[:1].upper()}{self.problem[1:]}." if self.remedy else self.problem


@contextmanager
def node_errors() -> Iterator[None]:
    """Let the errors of what runs inside begin with the remedy."""
    try:
        yield
    except AnchorEditError as error:
        raise NodeError(error.problem, error.remedy) from error


def to_mask(mask: Tensor | None) -> Tensor | None:
    """Check a MASK of one image [1, H, W], 1 where the edit may change the image."""
    if mask is None:
        return None
    if mask.ndim == 2:  # some packs give it without a batch
        mask = mask[None]
    if mask.shape[0] != 1:
        raise AnchorEditError(f"the MASK must be one mask, got a batch of {mask.shape[0]}", "Give one mask")
    if mask.shape[1:] == _NO_MASK and not mask.any():
        raise AnchorEditError(
            "the MASK is 64x64 and empty, which is what Load Image gives for an image without transparency",
            "Paint a mask over the image in Load Image (right click on the node, Open in MaskEditor)",
        )
    return mask.float().cpu()


def to_host_image(image: Tensor) -> Tensor:
    """Convert an image [3, H, W] to IMAGE [1, H, W, 3]."""
    return image.movedim(0, -1)[None].contiguous()


def from_host_image(image: Tensor) -> Tensor:
    """Convert an IMAGE of one image [1, H, W, 3 or 4] to [3, H, W]."""
    if image.shape[0] != 1:
        raise AnchorEditError(
            f"the IMAGE must be one image, got a batch of {image.shape[0]}",
            "Choose one image of it (node 'Image From Batch')",
        )
    return image[0, :, :, :3].movedim(-1, 0).float().contiguous()
