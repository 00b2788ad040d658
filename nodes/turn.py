"""One edit, and a chain of them."""

from dataclasses import replace

from comfy_api.latest import io

from ..anchoredit_model.config import EditConfig
from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.memory.anchor_memory import AnchorMemory
from ..anchoredit_model.sampling import describe_sampling, step_count, with_steps
from .base import CATEGORY, AnchorEditNode, MemorySocket, mask_input, seed_input, to_host_image, to_mask
from .editors.causal_wan import HostPipeline
from .host.model import new_graph, on_step, say

MASK = (
    "Where the edit may change the image, painted at the source image's size. Outside it every pixel stays as "
    "it was, bit by bit. Costs nothing."
)
# A link goes on to the inner nodes of a chain as a link, so that the host can tell which of them it has run before.
_LINK = {"rawLink": True}
_NULL_EDIT = "The instruction is empty: the image is made again as it is."
_NOT_TRAINED = "This MODEL does not say that it was trained to edit: plain Wan makes a new image instead of an edit."


def networks(extra_dict: dict | None = None) -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Wan 2.1 text-to-video, trained to edit.", extra_dict=extra_dict),
        io.Clip.Input("clip", tooltip="The text encoder that the model was trained with.", extra_dict=extra_dict),
        io.Vae.Input("vae", tooltip="The VAE that the session was started with.", extra_dict=extra_dict),
        MemorySocket.Input("memory", tooltip="The session so far. It stays as it is.", extra_dict=extra_dict),
    ]


def sampling() -> list[io.Input]:
    return [
        seed_input("Of the noise, 0 to 2^64 - 1; every turn draws its own from it. The same seed gives the same edit."),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Sampler steps, 1 to 1000; 0 takes the model's own. The time of a turn grows with it.",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="How strictly the instruction is followed, 1 to 30; 1 is off, 0 takes the model's own. Other than "
            "1 it doubles the time of a turn.",
        ),
    ]


def instruction_input() -> io.String.Input:
    return io.String.Input(
        "instruction",
        default="",
        multiline=True,
        tooltip="What to change, up to 512 tokens, taken literally. Empty: the image is made again as it is.",
    )


def remark(pipeline: HostPipeline, edit: EditConfig, instruction: str, guidance: float) -> str:
    """What an artist should know about the edit that is about to be made; "" if there is nothing."""
    remarks = [] if instruction.strip() else [_NULL_EDIT]
    if not pipeline.transformer.trained:
        sampled = describe_sampling(replace(edit, cfg=guidance or edit.cfg))
        remarks.append(f"{_NOT_TRAINED} Sampled with {sampled}.")
    return "\n".join(remarks)


class Turn(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditTurn",
            display_name="AnchorEdit Turn",
            category=CATEGORY,
            description="One edit of the session's newest image. Two turns from one memory are two branches.",
            inputs=[
                *networks(),
                instruction_input(),
                *sampling(),
                mask_input(MASK),
            ],
            outputs=[
                MemorySocket.Output(display_name="memory", tooltip="The session with this turn."),
                io.Image.Output(display_name="IMAGE", tooltip="The image, at the source's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(
        cls, model, clip, vae, memory: AnchorMemory, instruction: str, seed: int, steps: int, guidance: float, mask=None
    ) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae, clip, model)
        edit = with_steps(pipeline.edit, steps or None)
        if remarks := remark(pipeline, edit, instruction, guidance):
            say(remarks, cls.hidden.unique_id)
        watch = on_step(pipeline.transformer, step_count(edit))
        options = {"steps": steps or None, "guidance": guidance or None, "mask": to_mask(mask), "on_step": watch}
        memory = pipeline.turn(memory, instruction, seed, **options)
        if pipeline.remarks:
            say("\n".join([*filter(None, [remarks]), *pipeline.remarks]), cls.hidden.unique_id)
        return io.NodeOutput(memory, to_host_image(pipeline.image(memory)))


class Chain(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditChain",
            display_name="AnchorEdit Chain",
            category=CATEGORY,
            description="One turn for every line, each on the image of the one before. After a change only the "
            "changed line and those below it are computed.",
            inputs=[
                *networks(_LINK),
                io.String.Input(
                    "instructions",
                    default="",
                    multiline=True,
                    tooltip="One instruction per line; empty lines are skipped. Each line costs one turn.",
                ),
                *sampling(),
                mask_input(f"{MASK} It holds for every line.", _LINK),
            ],
            outputs=[
                MemorySocket.Output(display_name="memory", tooltip="The session with all turns."),
                io.Image.Output(display_name="IMAGE", tooltip="A batch: one image per line."),
            ],
            enable_expand=True,
        )

    @classmethod
    def run(cls, instructions: str, **shared) -> io.NodeOutput:
        lines = [line.strip() for line in instructions.splitlines() if line.strip()]
        if not lines:
            raise AnchorEditError("the chain has no instruction", "Write one per line")
        graph = new_graph()
        memory, images = shared.pop("memory"), None
        for number, line in enumerate(lines, 1):
            turn = graph.node("AnchorEditTurn", f"turn{number}", memory=memory, instruction=line, **shared)
            memory, image = turn.out(0), turn.out(1)
            if images:
                image = graph.node("ImageBatch", f"batch{number}", image1=images, image2=image).out(0)
            images = image
        return io.NodeOutput(memory, images, expand=graph.finalize())
