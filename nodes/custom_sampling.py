"""A turn by the host's own sampling nodes: Apply Memory before SamplerCustomAdvanced, Commit Turn after it."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..anchoredit_model.config import EditConfig
from ..anchoredit_model.memory.anchor_memory import AnchorMemory, Turn
from ..anchoredit_model.samplers import shifted_sigmas
from ..anchoredit_model.sampling import turn_generator, turn_noise
from .base import CATEGORY, AnchorEditNode, MemorySocket, mask_input, remedies_first, seed_input, to_mask
from .editors.causal_wan import HostPipeline, Runtime
from .host.attention import MemoryAttention
from .host.model import as_sampler, empty_latent, model_latent, with_memory
from .host.text import text_rows

_MASK = "anchoredit_mask"  # on a LATENT, which the host's nodes hand on with all that is on it


class ApplyMemory(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditApplyMemory",
            display_name="AnchorEdit Apply Memory",
            category=CATEGORY,
            description="A MODEL that sees the session, and what SamplerCustomAdvanced needs for the next turn.",
            inputs=[
                io.Model.Input("model", tooltip="Wan 2.1 text-to-video, trained to edit."),
                MemorySocket.Input(
                    "memory", tooltip="The session so far. Turns not at hand cost one pass each when sampling starts."
                ),
                io.Conditioning.Input("positive", tooltip="The instruction, from CLIP Text Encode."),
                seed_input("Of the noise, 0 to 2^64 - 1. The same seed gives the same edit as the Turn node."),
                mask_input(
                    "Where the edit may change the image, painted at the source image's size. After every step "
                    "the rest is put back; Commit Turn gets the mask with the LATENT. Costs nothing."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Latent.Output(display_name="LATENT", tooltip="Empty, of the session's size."),
                io.Noise.Output(display_name="NOISE"),
                io.Sampler.Output(display_name="SAMPLER", tooltip="The one that the model was trained for."),
                io.Sigmas.Output(display_name="SIGMAS"),
            ],
        )

    @classmethod
    def run(cls, model, memory: AnchorMemory, positive, seed: int, mask=None) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, model=model)
        pipeline.check_model(memory)
        text = pipeline.transformer.check_text(text_rows(positive))
        noise, latent = TurnNoise(seed, len(memory)), empty_latent(memory.turns[-1].latent.shape)
        mask = to_mask(mask)
        constraint = None if mask is None else memory.mask_constraint(mask)
        return io.NodeOutput(
            with_memory(model, SeenMemory(cls.runtime, memory, text), remedies_first, constraint),
            latent if mask is None else {**latent, _MASK: mask},
            noise,
            as_sampler(TurnSampler(pipeline.edit.sampler, noise)),
            sigmas(pipeline.edit),
        )


@dataclass(frozen=True)
class SeenMemory:
    """What a sampled MODEL sees: `memory`, as the turn with the embedding `text` [T, E] does."""

    runtime: Runtime
    memory: AnchorMemory
    text: Tensor

    def __call__(self, model) -> MemoryAttention:
        """The attention for the MODEL that samples; turns that it has not read yet, it reads now."""
        pipeline = HostPipeline(self.runtime, model=model)
        with pipeline.transformer.running():
            view, blocks = pipeline.reader.visible(self.memory, self.text)
        return MemoryAttention(view, blocks, pipeline.edit.temporal_stride)


class CommitTurn(AnchorEditNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnchorEditCommitTurn",
            display_name="AnchorEdit Commit Turn",
            category=CATEGORY,
            description="Adds what was sampled to the session, as its newest turn. Costs one pass of the model.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that sampled, before or after Apply Memory."),
                MemorySocket.Input("memory", tooltip="The session that was given to Apply Memory."),
                io.Latent.Input("latent", tooltip="What was sampled, clean; one image of the session's size."),
                io.Conditioning.Input("positive", tooltip="The instruction that was sampled with."),
                io.String.Input(
                    "instruction",
                    default="",
                    tooltip="The instruction in words, for filmstrips and session files. Changes no image.",
                ),
                mask_input(
                    "Where what was sampled is taken, painted at the source image's size. Without it: the mask that "
                    "Apply Memory was given. Costs nothing."
                ),
            ],
            outputs=[MemorySocket.Output(display_name="extended", tooltip="The session with this turn.")],
        )

    @classmethod
    def run(cls, model, memory: AnchorMemory, latent, positive, instruction: str, mask=None) -> io.NodeOutput:
        pipeline = HostPipeline(cls.runtime, model=model)
        pipeline.check_model(memory)
        text = pipeline.transformer.check_text(text_rows(positive))
        mask = to_mask(latent.get(_MASK) if mask is None else mask)
        x0 = model_latent(latent).cpu()
        if mask is not None:  # again, as the host's way out of the model's latents and back rounds
            x0 = memory.mask_constraint(mask)(x0)
        turn = Turn(x0, instruction.strip(), text.cpu(), mask=mask)
        with pipeline.transformer.running():
            return io.NodeOutput(pipeline.reader.commit(memory, turn))


class TurnNoise:
    """NOISE: the first draw of a turn's own generator."""

    def __init__(self, seed: int, turn: int):
        self.seed = seed
        self.turn = turn

    def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
        """[1, C, 1, h, w]"""
        return next(self.drawn(latent["samples"]))

    def drawn(self, like: Tensor):
        """All draws of the turn, each of the shape [1, C, 1, h, w] of `like`."""
        shape = like[0, :, 0].shape
        return (noise[None, :, None] for noise in turn_noise(shape, turn_generator(self.seed, self.turn)))


class TurnSampler:
    """The function of a SAMPLER: re-noising or Euler, as `anchoredit_model.sampling` does it."""

    def __init__(self, rule: str, noise: TurnNoise):
        self.rule = rule
        self.noise = noise

    def __call__(self, model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
        """x [1, C, 1, h, w] at the noise level sigmas[0] -> x0 if sigmas [n + 1] end with 0."""
        drawn = self.noise.drawn(x)
        next(drawn)  # which is x
        levels = sigmas.tolist()
        for step, (level, following) in enumerate(zip(levels, levels[1:])):
            x0 = model(x, sigmas[step].expand(len(x)), **(extra_args or {}))
            if callback is not None:
                callback({"i": step, "x": x, "denoised": x0, "sigma": sigmas[step], "sigma_hat": sigmas[step]})
            if self.rule == "euler":
                x = x0 + following / level * (x - x0)
            else:
                x = (1 - following) * x0 + following * next(drawn).to(x) if following else x0
        return x


def sigmas(edit: EditConfig) -> Tensor:
    """Noise levels [n + 1] of a turn, the last one 0."""
    if edit.sampler == "euler":
        return shifted_sigmas(edit.num_steps, edit.shift)
    return Tensor([*(time / 1000 for time in edit.timesteps), 0.0])
