"""Start a session, and go back in it."""

from comfy_api.latest import io

from .base import CATEGORY, AnchorEditNode, PolicySocket, SessionSocket, from_host_image, to_host_image
from .editors.session import MemorySettings, Networks, Session
from .inputs import session_input


class Start(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditStart",
            display_name="AnchorEdit Start",
            category=CATEGORY,
            description="Starts an edit session: the image becomes the anchor that every turn can see. The session "
            "carries the MODEL, CLIP and VAE, so later nodes need only its wire.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model that edits: Qwen-Image-Edit, FLUX.1 Kontext, FLUX.2, OmniGen2 or "
                    "another editor that the host runs with reference latents, or Wan 2.1 trained to edit.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder that the model was trained with."),
                io.Vae.Input("vae", tooltip="The VAE that the model was trained with."),
                io.Image.Input(
                    "image",
                    tooltip="The source image, of any size. It is edited at the nearest size that the model was "
                    "trained at; results have the source's own size again.",
                ),
                PolicySocket.Input(
                    "policy",
                    optional=True,
                    tooltip="What later turns may see. Without it: what suits the model, as a rule the anchor and the "
                    "newest turns.",
                ),
            ],
            outputs=[
                SessionSocket.Output(display_name="session"),
                io.Image.Output(display_name="IMAGE", tooltip="The source at the size it is edited at."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(cls, model, clip, vae, image, policy: MemorySettings | None = None) -> io.NodeOutput:
        source = from_host_image(image)
        session = cls.editor_for(Networks(model, clip, vae)).start(source, policy)
        geometry = session.memory.geometry
        cls.text().add(geometry.describe())
        return io.NodeOutput(session, to_host_image(geometry.to_work(source[None])[0]))


class Rewind(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditRewind",
            display_name="AnchorEdit Rewind",
            category=CATEGORY,
            description="Returns the session as it was after an earlier turn, with the MODEL and CLIP of that turn. "
            "The longer session stays as it is.",
            inputs=[
                session_input("The session to go back in."),
                io.Int.Input(
                    "turn",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="The number of the turn to go back to; 0 is the source image.",
                ),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The session up to that turn.")],
        )

    @classmethod
    def run(cls, session: Session, turn: int) -> io.NodeOutput:
        return io.NodeOutput(session.rewind(turn))
