"""Filmstrip: the whole session on one sheet."""

import torch
from comfy_api.latest import io, ui

from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from ..anchoredit_model.memory import AnchorMemory
from .base import CATEGORY, AnchorEditNode, MemorySocket, to_image
from .runtime import HostPipeline


class Filmstrip(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditFilmstrip",
            display_name="AnchorEdit Filmstrip",
            category=CATEGORY,
            description="Shows the source and every turn with its instruction.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that the session was started with. Costs one decoding per turn."),
                MemorySocket.Input("memory", tooltip="The session to show."),
                io.Int.Input(
                    "size",
                    default=256,
                    min=48,
                    max=2048,
                    tooltip="Of one picture on the sheet, in pixels, 48 to 2048.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="A batch: the source, then every turn.")],
            is_output_node=True,
        )

    @classmethod
    def run(cls, vae, memory: AnchorMemory, size: int) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae)
        pictures = []
        for turn in range(len(memory)):
            pictures.append(pipeline.picture(memory, turn, pictures[-1] if pictures else None))
        sheet = filmstrip(pictures, [turn.instruction or "(null edit)" for turn in memory.turns[1:]], size)
        batch = torch.cat([to_image(picture) for picture in pictures])
        return io.NodeOutput(batch, ui=ui.PreviewImage(to_image(to_tensor(sheet))))
