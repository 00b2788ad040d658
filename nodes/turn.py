"""One edit, and a chain of them."""

from comfy_api.latest import io

from ..anchoredit_model.errors import AnchorEditError
from .base import CATEGORY, AnchorEditNode, SessionSocket, to_host_image, to_mask
from .editors.base import TurnSettings
from .editors.session import Session
from .host.ui import new_graph
from .inputs import (
    clip_override,
    instruction_input,
    mask_input,
    model_override,
    sampling_inputs,
    session_input,
)

# The inner nodes of a chain get a link as a link, so that the host can tell which of them it has run before.
_LINK = {"rawLink": True}
_SESSION = "The session so far. It stays as it is."


class Turn(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditTurn",
            display_name="AnchorEdit Turn",
            category=CATEGORY,
            description="Edits the session's newest image once. Two turns from one session are two branches.",
            inputs=[
                session_input(_SESSION),
                instruction_input(),
                *sampling_inputs(),
                model_override(),
                clip_override(),
                mask_input(),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The session with this turn."),
                io.Image.Output(display_name="IMAGE", tooltip="The image at the source's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(
        cls, session: Session, instruction: str, seed: int, steps: int, cfg: float, model=None, clip=None, mask=None
    ) -> io.NodeOutput:
        settings = TurnSettings(steps or None, cfg or None, to_mask(mask))
        session = cls.editor(session, model, clip).turn(session, instruction, seed, settings)
        return io.NodeOutput(session, to_host_image(cls.runtime.decoder(session).image(session.memory)))


class Chain(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditChain",
            display_name="AnchorEdit Chain",
            category=CATEGORY,
            description="Makes one turn for every line, each on the image of the one before. After a change only the "
            "changed line and those below it are computed.",
            inputs=[
                session_input(_SESSION, _LINK),
                io.String.Input(
                    "instructions",
                    default="",
                    multiline=True,
                    tooltip="One instruction per line; empty lines are skipped. Each line is one turn.",
                ),
                *sampling_inputs(),
                model_override(_LINK),
                clip_override(_LINK),
                mask_input(extra_dict=_LINK),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The session with all turns."),
                io.Image.Output(display_name="IMAGE", tooltip="A batch: one image per line."),
            ],
            enable_expand=True,
        )

    @classmethod
    def run(cls, session, instructions: str, model=None, clip=None, **shared) -> io.NodeOutput:
        lines = [line.strip() for line in instructions.splitlines() if line.strip()]
        if not lines:
            raise AnchorEditError("the chain has no instruction", "Write one per line")
        graph = new_graph()
        images = None
        replacing = {name: link for name, link in (("model", model), ("clip", clip)) if link is not None}
        for number, line in enumerate(lines, 1):
            inputs = {**shared, **replacing, "session": session, "instruction": line}
            replacing = {}  # from the first turn on the session carries them
            turn = graph.node("AnchorEditTurn", f"turn{number}", **inputs)
            session, image = turn.out(0), turn.out(1)
            if images:
                image = graph.node("ImageBatch", f"batch{number}", image1=images, image2=image).out(0)
            images = image
        return io.NodeOutput(session, images, expand=graph.finalize())
