"""A run of the curriculum in one folder: which stage starts from what, and where everything lies.

OUT/vae, OUT/text_encoder        the small VAE and text encoder, if this run trains them
OUT/cache                        encoded sessions
OUT/pretrain, OUT/causal,
OUT/distill/consistency,
OUT/distill/matching             of each stage: transformer.safetensors (the averaged weights, ready to use),
                                 state/ (what training goes on from), log.jsonl and TensorBoard's files
OUT/model, OUT/anchoredit.safetensors
                                 the exported model: a folder for the pipeline, one file for ComfyUI
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator

from anchoredit_model.errors import AnchorEditError

from .config import Config, StageConfig
from .data.latent_cache import Encoders
from .data.source import Source, find_parts, open_source
from .engine import CHECKPOINT, LORA, Engine, make_accelerator
from .networks import NetworkBuilder, WeightInit, file_init, lora_init, random_init
from .stages.causal import Causal
from .stages.distill import Consistency, Matching
from .stages.pretrain import Pretrain
from .stages.stage import Stage, StageParts
from .state import newest
from .tiny.parts import FOLDERS, is_finished

STAGES: dict[str, tuple[type[Stage], ...]] = {
    "pretrain": (Pretrain,),
    "causal": (Causal,),
    "distill": (Consistency, Matching),
}
_BEFORE = {"causal": "pretrain", "distill.consistency": "causal", "distill.matching": "distill.consistency"}
_NEEDS_TEACHER = ("distill.consistency", "distill.matching")


class Curriculum:
    """The stages of one config in the folder `out`."""

    def __init__(self, config: Config, out: Path):
        self.config, self.out = config, out

    def run(self, command: str, resume: bool = False) -> bool:
        """Train the stages of a command; False if it was interrupted. With `resume`, what is finished is left alone."""
        return all(self._train(kind, resume) for kind in STAGES[command] if self.wanted(kind))

    def settings(self, name: str) -> StageConfig:
        """Return the part of the config that belongs to a stage, by its dotted name."""
        found = self.config
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def folder(self, name: str) -> Path:
        return self.out / Path(*name.split("."))

    def vae_folder(self) -> Path:
        return self._part("vae", "a VAE")

    def text_folder(self) -> Path:
        return self._part("text", "a text encoder")

    def encoders(self, device: str | torch.device) -> Encoders:
        """VAE and text encoder, loaded when they are needed."""
        dtype = torch.bfloat16 if self.config.engine.precision == "bfloat16" else torch.float32
        compile = self.config.data.compile and torch.device(device).type == "cpu"
        return Encoders(self.vae_folder(), self.text_folder(), device, dtype, compile)

    def cache(self) -> Path:
        return Path(self.config.data.cache) if self.config.data.cache else self.out / "cache"

    def source(self, kind: type[Stage], encoders: Encoders) -> Source:
        """Return the stage's data, encoded."""
        config = self.config
        settings, cache = self.settings(kind.name), self.cache()
        return open_source(config.data, settings, config.edit, kind.layouts, encoders, cache, self.accelerator)

    def start(self, name: str, text_dim: int) -> WeightInit:
        """Return what a stage's main network is built from.

        Adapters go through the stages as they are, on the weights that the first of them began with: the last LoRA
        file is of that model, and not of one that nobody else has.
        """
        sizes = replace(self.config.model, text_dim=text_dim)
        if given := self.settings(name).init:
            return file_init(given, sizes)
        if name in _BEFORE:
            before = _BEFORE[name]
            checkpoint = self._checkpoint(before, f"{name}.init")
            if self.config.lora.rank and (lora := self.folder(before) / LORA).is_file():
                return lora_init(self.start(before, text_dim), lora, self.config.lora)
            return file_init(str(checkpoint), sizes)
        if self.config.parts.transformer == "random":
            return random_init(sizes, self.config.engine.seed)
        if not self.config.parts.transformer:
            raise AnchorEditError(
                "the first stage has no weights to start from",
                "--set parts.transformer=FILE_OR_FOLDER of Wan 2.1, or =random",
            )
        return file_init(self.config.parts.transformer, sizes)

    def teacher(self, text_dim: int) -> WeightInit:
        """Return the undistilled model."""
        sizes = replace(self.config.model, text_dim=text_dim)
        given = self.config.distill.teacher
        return file_init(given or str(self._checkpoint("causal", "distill.teacher")), sizes)

    def missing(self, kind: type[Stage], made: Collection[str] = ()) -> list[str]:
        """Return what a stage would stop at for want of it, in lines with remedies; stages `made` are there by then."""
        name, text_dim = kind.name, self.config.model.text_dim
        needed: list[Callable] = [lambda: find_parts(self.config.data, self.config.edit, kind.layouts)]
        if self.settings(name).init or _BEFORE.get(name) not in made:
            needed.append(lambda: self.start(name, text_dim))
        if name in _NEEDS_TEACHER and (self.config.distill.teacher or "causal" not in made):
            needed.append(lambda: self.teacher(text_dim))
        return refusals(needed)

    def last_checkpoint(self) -> Path:
        """Of the stage that went furthest."""
        for name in ("distill.matching", "distill.consistency", "causal", "pretrain"):
            path = self.folder(name) / CHECKPOINT
            if path.is_file():
                return path
        raise AnchorEditError(
            f"'{self.out}' has no trained transformer", "Train a stage, or --set export.transformer=FILE"
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        return make_accelerator()

    def _train(self, kind: type[Stage], resume: bool) -> bool:
        folder = self.folder(kind.name)
        resumed = newest(folder / "state") is not None
        if resumed and not resume:
            raise AnchorEditError(f"'{folder}' has a training state", "Go on with --resume, or give another --out")
        engine = self._engine(kind)
        if resumed:
            engine.resume()
        return engine.train()

    def _engine(self, kind: type[Stage]) -> Engine:
        torch._dynamo.config.recompile_limit = 64  # sessions of several lengths, with and without a gradient
        name = kind.name
        encoders = self.encoders(self.accelerator.device)
        source = self.source(kind, encoders)
        text_dim = source.data.texts.states[""].shape[1]
        teacher = self.teacher(text_dim) if name in _NEEDS_TEACHER else None
        parts = StageParts(
            self.config, self.start(name, text_dim), teacher, encoders.vae, NetworkBuilder(self.config, self.accelerator)
        )
        stage = kind(self.settings(name), parts)
        return Engine(stage, source, self.folder(name), self.config, self.accelerator, encoders.vae)

    def wanted(self, kind: type[Stage]) -> bool:
        """Say whether a stage runs: a part of it may be left out by giving it no budget at all."""
        settings = self.settings(kind.name)
        return len(STAGES.get(kind.name.split(".")[0], ())) == 1 or settings.steps > 0 or settings.minutes > 0

    def _checkpoint(self, name: str, setting: str) -> Path:
        path = self.folder(name) / CHECKPOINT
        if not path.is_file():
            raise AnchorEditError(f"no '{path}'", f"Train {name} first, or --set {setting}=FILE")
        return path

    def _part(self, command: str, what: str) -> Path:
        """Return the folder of a part, the config's or our own, which has to be finished."""
        given = getattr(self.config.parts, command)
        folder = Path(given) if given else self.out / FOLDERS[command]
        if not folder.is_dir():
            raise AnchorEditError(
                f"{what} is needed and '{folder}' is not there",
                f"Train it with python -m train {command}, or --set parts.{command}=FOLDER",
            )
        if not given and not is_finished(folder):
            raise AnchorEditError(
                f"{what} is needed and the training of '{folder}' is not finished",
                f"Go on with python -m train "
                f"{command} --resume, or use it as it is with --set parts.{command}={folder}",
            )
        return folder


def refusals(calls: Iterable[Callable]) -> list[str]:
    """Return what the calls raise AnchorEditError for, each line once."""
    said = []
    for call in calls:
        try:
            call()
        except AnchorEditError as error:
            said.append(str(error))
    return list(dict.fromkeys(said))
