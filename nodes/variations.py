"""Candidates for one turn, side by side, and the one to go on with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..anchoredit_model.errors import AnchorEditError
from ..anchoredit_model.filmstrip import filmstrip
from ..anchoredit_model.images import to_tensor
from ..anchoredit_model.memory.anchor_memory import AnchorMemory
from ..anchoredit_model.sampling import step_count, with_steps
from .base import CATEGORY, AnchorEditNode, MemorySocket, mask_input, to_host_image, to_mask
from .editors.causal_wan import HostPipeline
from .host.model import free_device, is_out_of_memory, on_step, say
from .turn import MASK, instruction_input, networks, remark, sampling

VariantsSocket = io.Custom("ANCHOR_VARIANTS")  # Candidates; not a memory, so that no turn takes them unpicked
_MOST = 16
_CROWDED = "The memory does not hold {count} images at once: they were sampled one after the other."


@dataclass(frozen=True, eq=False)
class Candidates:
    """Memories that differ in their newest turn, and its images [B, H, W, 3]."""

    memories: tuple[AnchorMemory, ...]
    images: Tensor


class Variants(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditVariants",
            display_name="AnchorEdit Variants",
            category=CATEGORY,
            description="Several candidates for the next turn, sampled together from one memory. Choose one with "
            "AnchorEdit Pick.",
            inputs=[
                *networks(),
                instruction_input(),
                *sampling(),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=_MOST,
                    tooltip="Candidates, 1 to 16. The first is what Turn makes of this seed, the others have seeds "
                    "derived from it. Time and memory grow with it; where the memory does not suffice they are "
                    "sampled one by one.",
                ),
                mask_input(MASK),
            ],
            outputs=[
                VariantsSocket.Output(display_name="candidates"),
                io.Image.Output(display_name="IMAGE", tooltip="A batch: one image per candidate."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def run(
        cls,
        model,
        clip,
        vae,
        memory: AnchorMemory,
        instruction: str,
        seed: int,
        steps: int,
        guidance: float,
        count: int,
        mask=None,
    ) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, vae, clip, model)
        edit = with_steps(pipeline.edit, steps or None)
        watch = on_step(pipeline.transformer, step_count(edit))
        options = {"steps": steps or None, "guidance": guidance or None, "mask": to_mask(mask), "on_step": watch}
        remarks = remark(pipeline, edit, instruction, guidance)
        try:
            memories = pipeline.variants(memory, instruction, seed, count, **options, at_once=count > 1)
        except RuntimeError as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            memories = ()
        if not memories:  # not in the handler, which would keep what the batch has taken
            remarks = f"{remarks}\n{_CROWDED.format(count=count)}".strip()
            free_device(pipeline.store)
            memories = pipeline.variants(memory, instruction, seed, count, **options, at_once=False)
        if remarks := "\n".join([*filter(None, [remarks]), *pipeline.remarks]):
            say(remarks, cls.hidden.unique_id)

        before = pipeline.image(memory)
        decoded = [pipeline.image(each, before=before) for each in memories]
        images = torch.cat([to_host_image(each) for each in decoded])
        numbers = [str(number) for number in range(1, count + 1)]
        seeds = [f"seed {each.turns[-1].seed}" for each in memories]
        sheet = filmstrip([before, *decoded], seeds, labels=["before", *numbers])
        return io.NodeOutput(Candidates(memories, images), images, ui=ui.PreviewImage(to_host_image(to_tensor(sheet))))


class Pick(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditPick",
            display_name="AnchorEdit Pick",
            category=CATEGORY,
            description="One of the candidates, to go on with. Choosing another one samples nothing again.",
            inputs=[
                VariantsSocket.Input("candidates", tooltip="From AnchorEdit Variants."),
                io.Int.Input(
                    "number",
                    default=1,
                    min=1,
                    max=_MOST,
                    tooltip="Number of the candidate, 1 to as many as there are. Costs nothing.",
                ),
            ],
            outputs=[
                MemorySocket.Output(
                    display_name="memory", tooltip="The session with this candidate as its newest turn."
                ),
                io.Image.Output(display_name="IMAGE", tooltip="Its image, at the source's size."),
            ],
        )

    @classmethod
    def run(cls, candidates: Candidates, number: int) -> io.NodeOutput:
        count = len(candidates.memories)
        if number > count:
            raise AnchorEditError(f"there is no candidate {number}", f"Choose 1 to {count}")
        return io.NodeOutput(candidates.memories[number - 1], candidates.images[number - 1 : number])
