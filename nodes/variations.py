"""Candidates for one turn, side by side, and the one to continue with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from .base import CATEGORY, AnchorEditNode, SessionSocket, to_host_image, to_mask
from .editors.base import TurnSettings
from .editors.session import Session
from .inputs import (
    clip_override,
    instruction_input,
    mask_input,
    model_override,
    sampling_inputs,
    session_input,
)

VariationsSocket = io.Custom("ANCHOR_VARIATIONS")  # Candidates; not a session, so that no turn takes them unpicked
_MOST = 16


@dataclass(frozen=True, eq=False)
class Candidates:
    """Hold sessions that differ in their newest turn, and its images [B, H, W, 3]."""

    sessions: tuple[Session, ...]
    images: Tensor


class Variations(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditVariations",
            display_name="AnchorEdit Variations",
            category=CATEGORY,
            description="Makes several candidates for the next turn, sampled together. Choose one with AnchorEdit "
            "Pick.",
            inputs=[
                session_input("The session so far. It stays as it is."),
                instruction_input(),
                *sampling_inputs(),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=_MOST,
                    tooltip="The number of candidates, 1 to 16. The first is what Turn makes of this seed, the others "
                    "have seeds derived from it. Where memory does not suffice they are sampled one by one.",
                ),
                model_override(),
                clip_override(),
                mask_input(),
            ],
            outputs=[
                VariationsSocket.Output(display_name="variations"),
                io.Image.Output(display_name="IMAGE", tooltip="A batch: one image per candidate."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def run(
        cls,
        session: Session,
        instruction: str,
        seed: int,
        steps: int,
        cfg: float,
        count: int,
        model=None,
        clip=None,
        mask=None,
    ) -> io.NodeOutput:
        settings = TurnSettings(steps or None, cfg or None, to_mask(mask))
        sessions = cls.editor(session, model, clip).variations(session, instruction, seed, count, settings)

        decoder = cls.runtime.decoder(sessions[0])
        before = decoder.image(session.memory)
        decoded = [decoder.image(each.memory, before=before) for each in sessions]
        images = torch.cat([to_host_image(image) for image in decoded])
        numbers = [str(number) for number in range(1, count + 1)]
        seeds = [f"seed {each.memory.turns[-1].seed}" for each in sessions]
        sheet = filmstrip([before, *decoded], seeds, labels=["before", *numbers])
        return io.NodeOutput(Candidates(sessions, images), images, ui=ui.PreviewImage(to_host_image(to_tensor(sheet))))


class Pick(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditPick",
            display_name="AnchorEdit Pick",
            category=CATEGORY,
            description="Takes one of the candidates to continue with. Choosing another one samples nothing again.",
            inputs=[
                VariationsSocket.Input("variations", tooltip="The candidates, from AnchorEdit Variations."),
                io.Int.Input(
                    "number",
                    default=1,
                    min=1,
                    max=_MOST,
                    tooltip="The number of the candidate, 1 to as many as there are.",
                ),
            ],
            outputs=[
                SessionSocket.Output(
                    display_name="session", tooltip="The session with this candidate as its newest turn."
                ),
                io.Image.Output(display_name="IMAGE", tooltip="Its image, at the source's size."),
            ],
        )

    @classmethod
    def run(cls, variations: Candidates, number: int) -> io.NodeOutput:
        count = len(variations.sessions)
        if number > count:
            raise AnchorEditError(f"number must be 1 to {count}, got {number}", f"Choose 1 to {count}")
        return io.NodeOutput(variations.sessions[number - 1], variations.images[number - 1 : number])
