"""What a running node shows: progress, previews, a line of text; and the graph that it may expand to."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import latent_preview
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import Tensor

from .latent_space import LatentSpace
from .sampling.preview import step_callback


def on_step(patcher, steps: int, space: LatentSpace) -> Callable[[int, int, Tensor], None]:
    """Return a callback (step, steps, x0 [C, h, w]) for progress with the host's kind of latent preview.

    It raises when the artist interrupts.
    """
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    show, check = comfy.utils.ProgressBar(steps).update_absolute, throw_if_interrupted
    callback = step_callback(previewer, show, check, space.spatial_factor)
    return lambda step, total, x0: callback(step, total, space.with_frame_axis(x0[None]))


def on_encode(done: int, total: int) -> None:
    """Show progress when more frames are encoded than the one that a turn always encodes."""
    if total > 1:
        context = get_executing_context()
        if done == 0 and context is not None:
            show_node_text(f"Encoding {total} images of the session", context.node_id)
        progress(done, total)


def progress(done: int, total: int) -> None:
    """Move the running node's progress bar; raise when the artist interrupts."""
    comfy.utils.ProgressBar(total).update_absolute(done)
    throw_if_interrupted()


def throw_if_interrupted() -> None:
    """Raise the host's exception if the artist has interrupted the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def show_node_text(text: str, node_id: str | None) -> None:
    """Show a line of text on a node; for a node inside an expanded one, on that one."""
    if node_id is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id.partition(".")[0])


def new_graph() -> GraphBuilder:
    """Return an empty graph for the nodes that a node expands to."""
    return GraphBuilder()


class NodeText:
    """Show lines of text on a node, each as soon as it is added."""

    def __init__(self, node_id: str | None):
        self.node_id = node_id
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Show one more line."""
        self.lines.append(line)
        show_node_text("\n".join(self.lines), self.node_id)
