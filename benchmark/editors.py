"""Editors: what a benchmark measures. Each gets a source image and then one instruction after the other.

    pipeline       our pipeline with its memory, under any policy
    previous-only  the same, but a turn sees nothing except the image before it
    bidirectional  every frame sees every other, so nothing is remembered; for weights that were trained like that
    comfyui        a workflow on anybody's ComfyUI server, see `benchmark.comfyui`
    folder         images that somebody has made, see `benchmark.make`
    chain-vae      single turns, the decoded image of each being the source of the next: what people do today
    truth          the drawing of what was asked, as nobody could do it better
    return-input   the image before, whatever was asked
    shuffled       the faultless drawing of what another session was asked

The last three need no model: they show what the judge accepts and what it does not.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anchoredit_model.config import MemoryPolicy
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.memory.anchor_memory import Turn
from anchoredit_model.memory.visibility import bidirectional_views
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.networks.full_sequence import sequence_denoiser
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from anchoredit_model.samplers import Denoiser, guided
from anchoredit_model.sampling import sample, with_steps
from studio.render import render

from .protocols import Trial

if TYPE_CHECKING:
    from .suite import Suite

PREVIOUS_ONLY = MemoryPolicy(anchor_frames=0, window=1)
DEFAULT_SERVER = "http://127.0.0.1:8188"
TINY_WORKFLOW = Path(__file__).parent / "tiny_workflow.json"
_SEED_STEP = 1_000_003  # between the noise of one session under two sampling seeds


def noise_seed(session: int, sampling_seed: int) -> int:
    """The seed of all noise of a session, by its number."""
    return session + _SEED_STEP * sampling_seed


class Editor(ABC):
    """An editor under test; another one is a subclass of this and a line in `EDITORS`."""

    @abstractmethod
    def start(self, image: Tensor, session: int) -> None:
        """A new session from an image [3, H, W] in 0..1. `session` is its number, which the noise depends on."""

    @abstractmethod
    def edit(self, instruction: str) -> Tensor:
        """The next image, [3, H, W] in 0..1 of the source's size; "" asks for nothing."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its images depend on, as plain JSON values: an interrupted run goes on with the same only."""
        return {}

    @property
    def cache_bytes(self) -> int:
        """Bytes that it holds in order to remember the session so far, images and latents not counted."""
        return 0


class PipelineEditor(Editor):
    """Our pipeline: one memory per session, and nothing decoded is ever encoded again."""

    def __init__(
        self,
        pipeline: AnchorEditPipeline,
        policy: MemoryPolicy,
        steps: int | None = None,
        guidance: float | None = None,
        sampling_seed: int = 0,
    ):
        self.pipeline = pipeline
        self.policy = policy
        self.steps = steps
        self.guidance = guidance
        self.sampling_seed = sampling_seed

    @property
    def settings(self) -> dict[str, Any]:
        weight = next(self.pipeline.backbone.transformer.parameters())
        return {
            "model": self.pipeline.backbone.identity[:16],
            "policy": self.policy.to_json(),
            "steps": self.steps,
            "guidance": self.guidance,
            "slots": self.pipeline.edit.slot_mode,
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
        self._memory = self.pipeline.turn(self._memory, instruction, self._seed, self.steps, self.guidance)
        return self.pipeline.image(self._memory)


class BidirectionalEditor(PipelineEditor):
    """Attention in both directions: the history sees the frame that is being made, so every step computes all of it."""

    def edit(self, instruction: str) -> Tensor:
        pipeline, memory = self.pipeline, self._memory
        edit = with_steps(pipeline.edit, self.steps)
        guidance = edit.cfg if self.guidance is None else self.guidance
        text, null = pipeline.text_encoder.encode([instruction, ""])
        predict = guided(self._predictor(text), self._predictor(null), guidance)
        shape = memory.turns[0].latent.shape
        latent = sample(predict, shape, edit, self._seed, len(memory), device=pipeline.device)
        self._memory = memory.commit(Turn(latent, instruction, text))
        return pipeline.image(self._memory)

    def _predictor(self, text: Tensor) -> Denoiser:
        pipeline, memory = self.pipeline, self._memory
        seen = [memory.turns[frame] for frame in memory.view().frames]
        history = torch.stack([turn.latent for turn in seen])[None].to(pipeline.device)  # [1, n, C, h, w]
        texts = pad_sequence([*(turn.text for turn in seen), text.cpu()], batch_first=True)[None].to(pipeline.device)
        views = bidirectional_views(len(seen) + 1)
        sequence = sequence_denoiser(
            pipeline.backbone.transformer, history, texts, views, pipeline.edit.temporal_stride
        )

        def predict(x: Tensor, time: float) -> Tensor:
            with torch.no_grad():
                return sequence(x[None, None], torch.full((1, 1), time, device=x.device))[0, 0]

        return predict


class ChainVAEEditor(PipelineEditor):
    """Single turns: every image is decoded, encoded again and becomes an anchor of its own, with new noise."""

    def start(self, image: Tensor, session: int) -> None:
        self._seeds = random.Random(noise_seed(session, self.sampling_seed))
        self._image = image

    def edit(self, instruction: str) -> Tensor:
        super().start(self._image, self._seeds.getrandbits(32))
        self._image = super().edit(instruction)
        return self._image


class TruthEditor(Editor):
    """The drawings themselves."""

    def __init__(self, trial: Trial):
        self.trial = trial

    def start(self, image: Tensor, session: int) -> None:
        self._session, self._turn, self._size = session, 0, image.shape[-2:]

    def edit(self, instruction: str) -> Tensor:
        self._turn += 1
        scenes = self.trial.sessions.scenes[self._turn]
        return render(scenes[self._session : self._session + 1], *self._size)[0]


class ReturnInputEditor(Editor):
    """Does nothing, without fault."""

    def start(self, image: Tensor, session: int) -> None:
        self._image = image

    def edit(self, instruction: str) -> Tensor:
        return self._image


class ShuffledEditor(Editor):
    """Draws what the next session that was asked for something else is asked at the same turn."""

    def __init__(self, trial: Trial):
        self.trial = trial

    def start(self, image: Tensor, session: int) -> None:
        self._scene = self.trial.sessions.scenes[0][session : session + 1]
        self._session, self._turn, self._size = session, 0, image.shape[-2:]

    def edit(self, instruction: str) -> Tensor:
        edits = self.trial.sessions.edits[self._turn]
        facts = self._scene.facts[0].tolist()
        wanted = edits[self._session].apply(facts)
        others = [edit.apply(facts) for edit in (*edits[self._session + 1 :], *edits[: self._session])]
        wrong = next((other for other in others if other != wanted), None)
        if wrong is None:
            raise AnchorEditError(
                f"editor 'shuffled' finds no other instruction at turn {self._turn + 1} of session {self._session}",
                "Ask for more --sessions, or for a --protocol that asks for something",
            )
        self._turn += 1
        self._scene = self._scene.with_facts(torch.tensor([wrong]))
        return render(self._scene, *self._size)[0]


# ---------------------------------------------------------------- by name


@dataclass(frozen=True)
class EditorOptions:
    """What the command line says about the editor; None: its default."""

    model: Path | None = None
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    device: str | None = None
    window: int | None = None
    anchor_frames: int | None = None
    history: str | None = None
    slots: str | None = None
    sampling_seed: int | None = None
    server: str | None = None
    workflow: Path | None = None
    images: Path | None = None


def _pipeline(options: EditorOptions) -> AnchorEditPipeline:
    dtype, device = getattr(torch, options.dtype or "float32"), options.device or "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch says of other names, and of a GPU that is not there
        reason = str(error).splitlines()[0]
        raise AnchorEditError(f"device '{device}' cannot be used ({reason})", "Choose cpu, or cuda on a GPU") from None
    pipeline = AnchorEditPipeline.from_pretrained(options.model or TINY, dtype, device)
    if options.slots is None:
        return pipeline
    edit = replace(pipeline.edit, slot_mode=options.slots)
    backbone = TransformerBackbone(pipeline.backbone.transformer, edit)
    return AnchorEditPipeline(backbone, pipeline.vae, pipeline.text_encoder)


def _remembering(options: EditorOptions, suite: Suite) -> Editor:
    return _with_policy(PipelineEditor, options)


def _bidirectional(options: EditorOptions, suite: Suite) -> Editor:
    return _with_policy(BidirectionalEditor, options)


def _with_policy(kind: type[PipelineEditor], options: EditorOptions) -> Editor:
    pipeline = _pipeline(options)
    policy = pipeline.default_policy.with_options(**{name: getattr(options, name) for name in _POLICY_OPTIONS})
    return kind(pipeline, policy, *_sampling(options))


def _previous_only(options: EditorOptions, suite: Suite) -> Editor:
    return PipelineEditor(_pipeline(options), PREVIOUS_ONLY, *_sampling(options))


def _chain_vae(options: EditorOptions, suite: Suite) -> Editor:
    pipeline = _pipeline(options)
    return ChainVAEEditor(pipeline, pipeline.default_policy, *_sampling(options))


def _sampling(options: EditorOptions) -> tuple[int | None, float | None, int]:
    return options.steps, options.guidance, options.sampling_seed or 0


def _comfyui(options: EditorOptions, suite: Suite) -> Editor:
    from .comfyui import ComfyUIEditor

    workflow = options.workflow or TINY_WORKFLOW
    return ComfyUIEditor.open(options.server or DEFAULT_SERVER, workflow, options.sampling_seed or 0)


def _folder(options: EditorOptions, suite: Suite) -> Editor:
    from .make import FolderEditor

    if options.images is None:
        raise AnchorEditError("editor 'folder' needs images", "Give --images DIR, which `benchmark make` has written")
    return FolderEditor(options.images, suite)


_POLICY_OPTIONS = ("window", "anchor_frames", "history")
_MODEL_OPTIONS = ("model", "steps", "guidance", "dtype", "device", "sampling_seed")
# How an editor is made, and which options it takes.
EDITORS: Mapping[str, tuple[Callable[[EditorOptions, Suite], Editor], tuple[str, ...]]] = {
    "pipeline": (_remembering, (*_MODEL_OPTIONS, *_POLICY_OPTIONS, "slots")),
    "previous-only": (_previous_only, _MODEL_OPTIONS),
    "bidirectional": (_bidirectional, (*_MODEL_OPTIONS, "window", "anchor_frames")),
    "chain-vae": (_chain_vae, _MODEL_OPTIONS),
    "comfyui": (_comfyui, ("server", "workflow", "sampling_seed")),
    "folder": (_folder, ("images",)),
    "truth": (lambda options, suite: TruthEditor(suite.trial), ()),
    "return-input": (lambda options, suite: ReturnInputEditor(), ()),
    "shuffled": (lambda options, suite: ShuffledEditor(suite.trial), ()),
}


def make_editor(name: str, options: EditorOptions, suite: Suite) -> Editor:
    """The editor of this name; an option that it has no use for is an error, lest a table claim it."""
    make, takes = EDITORS[name]
    for option, value in asdict(options).items():
        if value is not None and option not in takes:
            flag = "--" + option.replace("_", "-")
            fit = ", ".join(other for other, (_, taken) in EDITORS.items() if option in taken)
            raise AnchorEditError(
                f"editor '{name}' does not take {flag} {value}", f"Leave it out, or choose one of {fit}"
            )
    return make(options, suite)
