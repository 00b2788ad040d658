"""Look at a session: all its images, and how far they have drifted from the first."""

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.drift.curve import TurnDrift, drift_curve, table
from ..anchoredit_model.drift.plot import drift_plot
from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from ..anchoredit_model.memory.anchor_memory import AnchorMemory
from .base import CATEGORY, AnchorEditNode, MemorySocket, mask_input, to_host_image, to_mask
from .editors.causal_wan import HostPipeline
from .host.model import progress, say

SCRUBBED_SIDE = 1024  # longest side in pixels of the images that the strip in the browser compares
NULL_EDIT = "(null edit)"


class Filmstrip(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditFilmstrip",
            display_name="AnchorEdit Filmstrip",
            category=CATEGORY,
            description="Shows the source and every turn with its instruction. On the node: click an image to see it, "
            "drag over it to compare it with the one before or with the source.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that the session was started with. Costs one decoding per turn."),
                MemorySocket.Input("memory", tooltip="The session to show."),
                io.Int.Input(
                    "size",
                    default=256,
                    min=48,
                    max=2048,
                    tooltip="Of one image on the sheet, in pixels, 48 to 2048.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="A batch: the source, then every turn.")],
            is_output_node=True,
        )

    @classmethod
    def run(cls, vae, memory: AnchorMemory, size: int) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae)
        images = []
        for turn in range(len(memory)):
            progress(turn, len(memory))
            images.append(pipeline.image(memory, turn, images[-1] if images else None))
        progress(len(memory), len(memory))
        captions = [turn.instruction or NULL_EDIT for turn in memory.turns[1:]]
        shown = ui.PreviewImage(to_host_image(to_tensor(filmstrip(images, captions, size)))).as_dict()
        # `images` is what the host shows by itself; `turns` is for web/filmstrip.js
        files = ui.PreviewImage(torch.cat([to_host_image(_at_most(image, SCRUBBED_SIDE)) for image in images])).values
        turns = [{**file, "caption": caption} for file, caption in zip(files, ["", *captions])]
        batch = torch.cat([to_host_image(image) for image in images])
        return io.NodeOutput(batch, ui={**shown, "turns": turns})


def _at_most(image: Tensor, side: int) -> Tensor:
    """[3, H, W] with no side longer than `side`."""
    scale = side / max(image.shape[1:])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1:]]
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


class Drift(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditDrift",
            display_name="AnchorEdit Drift",
            category=CATEGORY,
            description="How far every turn is from the source image: likeness, colour, shift and sharpness. Edits "
            "that were asked for count as well, unless their turns have masks: an edit is a step, drift is a slope.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that the session was started with. Costs one decoding per turn."),
                MemorySocket.Input("memory", tooltip="The session to measure. It stays as it is."),
                mask_input(
                    "What to look at, such as a face: white is measured. Of the source's size. Without it, and within "
                    "it: all that no turn's own mask has given to an edit."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The plot, 1000x800."),
                io.String.Output(
                    display_name="table", tooltip="The numbers, as comma-separated values with a line for every turn."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def run(cls, vae, memory: AnchorMemory, mask: Tensor | None = None) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae)
        subject = to_mask(mask)

        def image(turn: int, before: Tensor | None) -> Tensor:
            progress(turn, len(memory))
            return pipeline.image(memory, turn, before)

        curve = list(drift_curve(memory, image, None if subject is None else subject[0]))
        progress(len(memory), len(memory))
        say(_in_words(curve[-1]), cls.hidden.unique_id)
        plot = to_host_image(to_tensor(drift_plot(curve)))
        return io.NodeOutput(plot, table(curve), ui=ui.PreviewImage(plot))


def _in_words(turn: TurnDrift) -> str:
    """A turn in one line."""
    if turn.measured == 0:
        return f"turn {turn.turn}: its masks leave nothing to measure"
    parts = {
        "likeness": _shown(turn.likeness, ".2f"),
        "colour": _shown(turn.colour, ".1f"),
        "shift": f"{_shown(turn.right, '+.1f')}, {_shown(turn.down, '+.1f')} px",
        "sharpness": _shown(turn.sharpness, "+.1f"),
    }
    return f"turn {turn.turn}: " + ", ".join(f"{name} {value}" for name, value in parts.items())


def _shown(value: float | None, form: str) -> str:
    if value is None:
        return "?"
    text = format(value, form)
    return text if float(text) else "0"
