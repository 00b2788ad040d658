"""Start a session, say what its turns may see, go back in it."""

import torch
from comfy_api.latest import io

from ..anchoredit_model.config import HISTORIES, KV_DTYPES, PLACES, MemoryPolicy, TransformerConfig
from ..anchoredit_model.geometry import fit
from ..anchoredit_model.memory.anchor_memory import AnchorMemory
from ..anchoredit_model.memory.kv_size import format_bytes, kv_size
from .base import CATEGORY, AnchorEditNode, MemorySocket, PolicySocket, from_host_image, to_host_image
from .editors.causal_wan import HostPipeline
from .host.model import say


class Start(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditStart",
            display_name="AnchorEdit Start",
            category=CATEGORY,
            description="Begins an edit session: the image becomes the anchor that every turn can see.",
            inputs=[
                io.Vae.Input("vae", tooltip="Wan 2.1's VAE, or the one of Load Tiny. Costs one encoding."),
                io.Clip.Input("clip", tooltip="Wan 2.1's text encoder (umT5), or the one of Load Tiny."),
                io.Image.Input(
                    "image",
                    tooltip="One image of any size. It is worked on at the nearest size that the model was trained "
                    "at, and every result has the image's own size again.",
                ),
                PolicySocket.Input(
                    "policy",
                    optional=True,
                    tooltip="What later turns may see. Without it: the anchor and as many turns as the model was "
                    "trained to see.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will edit, so that the image is worked on at the size it was trained "
                    "at. Without it: 1024x1024 pixels in area, or the size of Load Tiny. Costs nothing.",
                ),
            ],
            outputs=[
                MemorySocket.Output(display_name="memory"),
                io.Image.Output(display_name="IMAGE", tooltip="The image as it will be worked on."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(cls, vae, clip, image, policy: MemoryPolicy | None = None, model=None) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae, clip, model)
        source = from_host_image(image)
        memory = pipeline.start(source, policy)
        say(memory.geometry.describe(), cls.hidden.unique_id)
        return io.NodeOutput(memory, to_host_image(memory.geometry.to_work(source[None])[0]))


class Policy(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = MemoryPolicy()
        return io.Schema(
            node_id="AnchorEditMemoryPolicy",
            display_name="AnchorEdit Memory Policy",
            category=CATEGORY,
            description="What the next turn may see of the session.",
            inputs=[
                io.Int.Input(
                    "anchor_frames",
                    default=default.anchor_frames,
                    min=0,
                    max=16,
                    tooltip="Turns at the beginning that every turn sees, 0 to 16; 1 is the source image. Each one "
                    "costs the memory of one image's keys and values and a little time per step.",
                ),
                io.Int.Input(
                    "window",
                    default=default.window,
                    min=0,
                    max=64,
                    tooltip="Last turns that a turn sees, 0 to 64. Each one costs as much as an anchor frame.",
                ),
                io.Combo.Input(
                    "history",
                    options=list(HISTORIES),
                    default=default.history,
                    tooltip="stream: a turn is remembered as it was read when it was made; no extra cost. refresh: "
                    "the visible turns are read again when the window moves; costs one model pass for each of them.",
                ),
                io.Combo.Input(
                    "place",
                    options=list(PLACES),
                    default=default.place,
                    tooltip="Where remembered keys and values lie; never changes an image. vram: where the model "
                    "runs. ram: main memory; costs one copy of all visible turns per step. auto: vram while the "
                    "visible turns fit beside the model, else ram.",
                ),
                io.Combo.Input(
                    "kv_dtype",
                    options=list(KV_DTYPES),
                    default=default.kv_dtype,
                    tooltip="Number format of remembered keys and values. auto: the model's own, exact. bfloat16 and "
                    "float16: 2 bytes per number, rounded, half the memory of float32 (4 bytes). float8_e4m3fn: 1 "
                    "byte, with about 3 % error, which the Turn shows. Changing it changes images slightly.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will edit, to show on this node what its turns cost. Changes nothing else.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image that will be edited, to count the cost at its size. Without it: the size "
                    "that the model was trained at.",
                ),
            ],
            outputs=[PolicySocket.Output(display_name="policy")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(
        cls, anchor_frames: int, window: int, history: str, place: str, kv_dtype: str, model=None, image=None
    ) -> io.NodeOutput:
        policy = MemoryPolicy(anchor_frames, window, history, place, kv_dtype)
        say(cls._cost(policy, model, image), cls.hidden.unique_id)
        return io.NodeOutput(policy)

    @classmethod
    def _cost(cls, policy: MemoryPolicy, model, image) -> str:
        """What turns under this policy hold, in words."""
        if model is None:
            itemsize = 2 if policy.kv_dtype == "auto" else getattr(torch, policy.kv_dtype).itemsize
            sizes = {name: TransformerConfig.named(name) for name in ("1.3B", "14B")}
            costs = {name: kv_size(size, policy, 1024, 1024, itemsize) for name, size in sizes.items()}
            words = [f"Wan {name}: {cost.describe_sampling('memory')}" for name, cost in costs.items()]
            return f"At 1024x1024, bytes per number {itemsize}. {'; '.join(words)}. Connect a model to count its own."
        transformer = HostPipeline(cls.runtime, model=model).transformer
        edit = transformer.edit
        height, width = (edit.resolution, edit.resolution) if image is None else image.shape[1:3]
        work = fit(height, width, edit.resolution, edit.resolution_step, edit.max_aspect_ratio)
        itemsize = transformer.itemsize if policy.kv_dtype == "auto" else getattr(torch, policy.kv_dtype).itemsize
        cost = kv_size(transformer.config, policy, work.work_height, work.work_width, itemsize)
        place = (
            "main memory"
            if policy.place == "ram" or (policy.place == "auto" and cost.visible > transformer.share)
            else "VRAM"
        )
        weights = format_bytes(transformer.patcher.model_size())
        return f"At {work.work_width}x{work.work_height}: {cost.describe_sampling(place)}, beside {weights} of weights."


class Rewind(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditRewind",
            display_name="AnchorEdit Rewind",
            category=CATEGORY,
            description="The session as it was after an earlier turn. The longer one stays as it is.",
            inputs=[
                MemorySocket.Input("memory", tooltip="The session to go back in."),
                io.Int.Input(
                    "turn",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Number of the turn to go back to; 0 is the source image. Costs nothing.",
                ),
            ],
            outputs=[MemorySocket.Output(display_name="rewound", tooltip="The session up to that turn.")],
        )

    @classmethod
    def run(cls, memory: AnchorMemory, turn: int) -> io.NodeOutput:
        return io.NodeOutput(memory.rewind(turn))
