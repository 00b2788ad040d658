"""Look at a session: all its images, and how far they have drifted from the source."""

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.drift.curve import TurnDrift, drift_curve, table
from ..anchoredit_model.drift.plot import drift_plot
from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from .base import CATEGORY, AnchorEditNode, to_host_image, to_mask
from .editors.session import Session
from .host.ui import progress
from .inputs import mask_input, session_input

COMPARED_SIDE = 1024  # longest side in pixels of the images that the strip in the browser compares
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
                session_input("The session to show. Costs one decoding per turn."),
                io.Int.Input(
                    "size",
                    default=256,
                    min=48,
                    max=2048,
                    tooltip="The size of one image on the sheet in pixels, 48 to 2048.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="A batch: the source, then every turn.")],
            is_output_node=True,
        )

    @classmethod
    def run(cls, session: Session, size: int) -> io.NodeOutput:
        memory, decoder = session.memory, cls.runtime.images(session.in_force)
        images = []
        for turn in range(len(memory)):
            progress(turn, len(memory))
            images.append(decoder.image(memory, turn, images[-1] if images else None))
        progress(len(memory), len(memory))
        captions = [turn.instruction or NULL_EDIT for turn in memory.turns[1:]]
        shown = ui.PreviewImage(to_host_image(to_tensor(filmstrip(images, captions, size)))).as_dict()
        # `images` is what the host shows by itself; `turns` is for web/filmstrip.js
        files = ui.PreviewImage(torch.cat([to_host_image(_at_most(image, COMPARED_SIDE)) for image in images])).values
        turns = [{**file, "caption": caption} for file, caption in zip(files, ["", *captions])]
        batch = torch.cat([to_host_image(image) for image in images])
        return io.NodeOutput(batch, ui={**shown, "turns": turns})


def _at_most(image: Tensor, side: int) -> Tensor:
    """Scale an image [3, H, W] down to no side longer than `side`."""
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
            description="Measures how far every turn is from the source image: likeness, colour, shift, sharpness. "
            "Edits that were asked for count as well, unless their turns have masks: an edit is a step, "
            "drift is a slope.",
            inputs=[
                session_input("The session to measure. Costs one decoding per turn."),
                mask_input(
                    "The region to measure, such as a face: white, at the source image's size. With or without it, "
                    "regions that a turn's own mask opened to an edit are left out."
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
    def run(cls, session: Session, mask: Tensor | None = None) -> io.NodeOutput:
        memory, decoder = session.memory, cls.runtime.images(session.in_force)
        subject = to_mask(mask)

        def image(turn: int, before: Tensor | None) -> Tensor:
            progress(turn, len(memory))
            return decoder.image(memory, turn, before)

        curve = list(drift_curve(memory, image, None if subject is None else subject[0]))
        progress(len(memory), len(memory))
        cls.text().add(_describe(curve[-1]))
        plot = to_host_image(to_tensor(drift_plot(curve)))
        return io.NodeOutput(plot, table(curve), ui=ui.PreviewImage(plot))


def _describe(turn: TurnDrift) -> str:
    """Describe a turn in one line."""
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
