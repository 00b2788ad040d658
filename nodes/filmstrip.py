"""The images of a session, side by side."""

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from .base import CATEGORY, AnchorEditNode, to_host_image
from .editors.session import Session
from .host.ui import progress
from .inputs import session_input

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
                session_input("The session to show. Runs one VAE decode per turn."),
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
        memory, decoder = session.memory, cls.runtime.decoder(session)
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
