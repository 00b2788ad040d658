"""A turn by the host's own sampling nodes: Apply Memory before SamplerCustomAdvanced, Commit Turn after it."""

from __future__ import annotations

from comfy_api.latest import io

from .base import CATEGORY, AnchorEditNode, SessionSocket, node_errors, to_mask
from .editors.session import Session
from .inputs import mask_input, seed_input, session_input


class ApplyMemory(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditApplyMemory",
            display_name="AnchorEdit Apply Memory",
            category=CATEGORY,
            description="Gives a MODEL that sees the session, and what SamplerCustomAdvanced needs for the next turn.",
            inputs=[
                session_input("The session so far. Turns without keys and values cost one model pass each."),
                io.Conditioning.Input("positive", tooltip="The instruction, from CLIP Text Encode."),
                seed_input("The random seed used for creating the noise. The same seed as Turn gives the same edit."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL that samples, if it is not the session's: with a LoRA, say. Commit Turn needs "
                    "the same one.",
                ),
                mask_input(
                    "Where the edit may change the image, painted at the source image's size. The rest is restored "
                    "after every step; Commit Turn gets the mask with the LATENT."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Latent.Output(display_name="LATENT", tooltip="Empty, of the session's size."),
                io.Noise.Output(display_name="NOISE"),
                io.Sampler.Output(display_name="SAMPLER", tooltip="The one that the model was trained for."),
                io.Sigmas.Output(display_name="SIGMAS"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(cls, session: Session, positive, seed: int, model=None, mask=None) -> io.NodeOutput:
        editor = cls.editor(session, model)
        made = editor.apply_memory(session, positive, seed, to_mask(mask), node_errors)
        return io.NodeOutput(made.model, made.latent, made.noise, made.sampler, made.sigmas)


class CommitTurn(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditCommitTurn",
            display_name="AnchorEdit Commit Turn",
            category=CATEGORY,
            description="Adds what was sampled to the session as its newest turn. Costs one model pass.",
            inputs=[
                session_input("The session that was given to Apply Memory."),
                io.Latent.Input("latent", tooltip="What was sampled, clean; one image of the session's size."),
                io.Conditioning.Input("positive", tooltip="The instruction that was sampled with."),
                io.String.Input(
                    "instruction",
                    default="",
                    tooltip="The instruction in words, for filmstrips and session files. Changes no image.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL that sampled, if it is not the session's: with a LoRA, say. It replaces the "
                    "session's for the turns after this one.",
                ),
                mask_input(
                    "Where what was sampled is taken, painted at the source image's size. Without it: the mask that "
                    "Apply Memory was given."
                ),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The session with this turn.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def run(cls, session: Session, latent, positive, instruction: str, model=None, mask=None) -> io.NodeOutput:
        editor = cls.editor(session, model)
        return io.NodeOutput(editor.commit(session, latent, positive, instruction, to_mask(mask)))
