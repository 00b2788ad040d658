"""Start a session, say what its turns may see, go back in it."""

from comfy_api.latest import io

from ..anchoredit_model.config import HISTORIES, KV_DTYPES, PLACES, MemoryPolicy
from ..anchoredit_model.memory import AnchorMemory
from .base import CATEGORY, AnchorEditNode, MemorySocket, PolicySocket, to_image, to_picture
from .host import say
from .runtime import HostPipeline


class Start(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditStart",
            display_name="AnchorEdit Start",
            category=CATEGORY,
            description="Begins an edit session: the picture becomes the anchor that every turn can see.",
            inputs=[
                io.Vae.Input("vae", tooltip="Wan 2.1's VAE, or the one of Load Tiny. Costs one encoding."),
                io.Clip.Input("clip", tooltip="Wan 2.1's text encoder (umT5), or the one of Load Tiny."),
                io.Image.Input(
                    "image",
                    tooltip="One picture of any size. It is worked on at the nearest size that the model was trained "
                    "at, and every result has the picture's own size again.",
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
                    tooltip="The model that will edit, so that the picture is worked on at the size it was trained "
                    "at. Without it: 1024x1024 pixels in area, or the size of Load Tiny. Costs nothing.",
                ),
            ],
            outputs=[
                MemorySocket.Output(display_name="memory"),
                io.Image.Output(display_name="IMAGE", tooltip="The picture as it will be worked on."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(cls, vae, clip, image, policy: MemoryPolicy | None = None, model=None) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae, clip, model)
        picture = to_picture(image)
        memory = pipeline.start(picture, policy)
        say(memory.geometry.describe(), cls.hidden.unique_id)
        return io.NodeOutput(memory, to_image(memory.geometry.to_work(picture[None])[0]))


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
                    tooltip="Turns at the beginning that every turn sees, 0 to 16; 1 is the source picture. Each one "
                    "costs the memory of one picture's keys and values and a little time per step.",
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
                    tooltip="Where remembered keys and values lie; never changes a picture. vram: where the model "
                    "runs. ram: main memory; costs one copy of all visible turns per step. auto: vram while the "
                    "visible turns fit into a quarter of it, else ram.",
                ),
                io.Combo.Input(
                    "kv_dtype",
                    options=list(KV_DTYPES),
                    default=default.kv_dtype,
                    tooltip="Number format of remembered keys and values. auto: the model's own, exact. bfloat16 and "
                    "float16: 2 bytes per number, rounded, half the memory of float32 (4 bytes). Changing it "
                    "changes pictures slightly.",
                ),
            ],
            outputs=[PolicySocket.Output(display_name="policy")],
        )

    @classmethod
    def run(cls, anchor_frames: int, window: int, history: str, place: str, kv_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(MemoryPolicy(anchor_frames, window, history, place, kv_dtype))


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
                    tooltip="Number of the turn to go back to; 0 is the source picture. Costs nothing.",
                ),
            ],
            outputs=[MemorySocket.Output(display_name="rewound", tooltip="The session up to that turn.")],
        )

    @classmethod
    def run(cls, memory: AnchorMemory, turn: int) -> io.NodeOutput:
        return io.NodeOutput(memory.rewind(turn))
