"""How far a session's images have drifted from the source."""

from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.drift.curve import TurnDrift, drift_curve, table
from ..anchoredit_model.drift.plot import drift_plot
from ..anchoredit_model.images import to_tensor
from .base import CATEGORY, AnchorEditNode, to_host_image, to_mask
from .editors.session import Session
from .host.ui import progress
from .inputs import mask_input, session_input


class Drift(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditDrift",
            display_name="AnchorEdit Drift",
            category=CATEGORY,
            description="Measures how far every turn is from the source image: likeness, colour, shift, sharpness. "
            "Requested edits count as well, unless their turns have masks: an edit shows as a jump of "
            "a curve, drift as a slope.",
            inputs=[
                session_input("The session to measure. Runs one VAE decode per turn."),
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
        memory, decoder = session.memory, cls.runtime.decoder(session)
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
