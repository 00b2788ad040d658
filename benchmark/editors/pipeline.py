"""Editors on our own model.

pipeline         the pipeline with its session memory, under any policy
previous-only    the same, but a turn sees only the image before it
bidirectional    every frame attends to every other, so nothing is cached; for weights trained like that
decode-reencode  single turns; the decoded image of each is the source of the next, as people edit today
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.memory.anchor_memory import Turn
from anchoredit_model.memory.visibility import bidirectional_views
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.networks.full_sequence import sequence_denoiser
from anchoredit_model.networks.transformer import CausalWanTransformer
from anchoredit_model.pipeline import AnchorEditPipeline
from anchoredit_model.samplers import Denoiser, guided
from anchoredit_model.sampling import sample, with_steps

from .base import Editor, noise_seed

PREVIOUS_ONLY = MemoryPolicy(anchor_frames=0, window=1)


def transformer_of(pipeline: AnchorEditPipeline) -> CausalWanTransformer:
    """Return the network of a pipeline that runs without ComfyUI."""
    assert isinstance(pipeline.backbone, TransformerBackbone)
    return pipeline.backbone.transformer


class PipelineEditor(Editor):
    """Edit with our pipeline: one session memory, and nothing decoded is ever encoded again."""

    def __init__(
        self,
        pipeline: AnchorEditPipeline,
        policy: MemoryPolicy,
        steps: int | None = None,
        cfg: float | None = None,
        sampling_seed: int = 0,
    ):
        self.pipeline = pipeline
        self.policy = policy
        self.steps = steps
        self.cfg = cfg
        self.sampling_seed = sampling_seed

    @property
    def settings(self) -> dict[str, Any]:
        weight = next(transformer_of(self.pipeline).parameters())
        return {
            "model": self.pipeline.backbone.fingerprint[:16],
            "policy": self.policy.to_json(),
            "steps": self.steps,
            "cfg": self.cfg,
            "slot_mode": self.pipeline.edit.slot_mode,
            "sampling_seed": self.sampling_seed,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
        }

    @property
    def cache_bytes(self) -> int:
        return self.pipeline.store.nbytes

    def start(self, image: Tensor, session: int) -> None:
        self._seed = noise_seed(session, self.sampling_seed)
        self._memory = self.pipeline.start(image, self.policy)

    def edit(self, instruction: str) -> Tensor:
        self._memory = self.pipeline.turn(self._memory, instruction, self._seed, self.steps, self.cfg)
        return self.pipeline.image(self._memory)


class BidirectionalEditor(PipelineEditor):
    """Edit with attention in both directions: the history sees the new frame, so every step computes all frames."""

    def edit(self, instruction: str) -> Tensor:
        pipeline, memory = self.pipeline, self._memory
        edit = with_steps(pipeline.edit, self.steps)
        cfg = edit.cfg if self.cfg is None else self.cfg
        text, null = pipeline.text_encoder.encode([instruction, ""])
        denoiser = guided(self._denoiser(text), self._denoiser(null), cfg)
        shape = memory.turns[0].latent.shape
        latent = sample(denoiser, shape, edit, self._seed, len(memory), device=pipeline.device)
        self._memory = memory.commit(Turn(latent, instruction, text))
        return pipeline.image(self._memory)

    def _denoiser(self, text: Tensor) -> Denoiser:
        pipeline, memory = self.pipeline, self._memory
        seen = [memory.turns[frame] for frame in memory.view().frames]
        history = torch.stack([turn.latent for turn in seen])[None].to(pipeline.device)  # [1, n, C, h, w]
        texts = pad_sequence([*(turn.text for turn in seen), text.cpu()], batch_first=True)[None].to(pipeline.device)
        views = bidirectional_views(len(seen) + 1)
        sequence = sequence_denoiser(transformer_of(pipeline), history, texts, views, pipeline.edit.temporal_stride)

        def denoise(x: Tensor, time: float) -> Tensor:
            with torch.no_grad():
                return sequence(x[None, None], torch.full((1, 1), time, device=x.device))[0, 0]

        return denoise


class DecodeReencodeEditor(PipelineEditor):
    """Edit in single turns: every decoded image is encoded again as the anchor of the next, with new noise."""

    def start(self, image: Tensor, session: int) -> None:
        self._seeds = random.Random(noise_seed(session, self.sampling_seed))
        self._image = image

    def edit(self, instruction: str) -> Tensor:
        super().start(self._image, self._seeds.getrandbits(32))
        self._image = super().edit(instruction)
        return self._image
