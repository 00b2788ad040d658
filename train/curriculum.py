"""The curriculum in one folder: the initial weights of each stage, and the files of a run.

OUT/vae, OUT/text_encoder        the small VAE and text encoder, if this run trains them
OUT/cache                        encoded sessions, unless data.cache is set
OUT/pretrain, OUT/causal,
OUT/distill/consistency,
OUT/distill/matching             of each stage: transformer.safetensors (the averaged weights, ready to use),
                                 state/ (the training state to resume from), log.jsonl and TensorBoard's files
OUT/model, OUT/anchoredit.safetensors
                                 the exported model: a folder for the pipeline, one file for ComfyUI
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import torch
from accelerate import Accelerator

from anchoredit_model.errors import AnchorEditError

from .config import Config, StageConfig
from .data.latent_cache import Encoders
from .data.source import Source, find_parts, open_source
from .engine import CHECKPOINT, LORA, Engine, make_accelerator
from .lora import lora_init
from .networks import NetworkBuilder
from .stages.registry import BEFORE, STAGES
from .stages.stage import Stage, StageParts
from .state import latest_state
from .tiny.parts import FOLDERS, is_finished
from .weight_init import WeightInit, file_init, random_init

_NEEDS_TEACHER = ("distill.consistency", "distill.matching")


class Curriculum:
    """Train the stages of one config in the folder `out`."""

    def __init__(self, config: Config, out: Path):
        self.config, self.out = config, out

    def run(self, command: str, resume: bool = False) -> bool:
        """Train the stages of a command; False if interrupted. With `resume`, finished stages are left unchanged."""
        return all(self._train(kind, resume) for kind in STAGES[command] if self.has_budget(kind))

    def settings(self, name: str) -> StageConfig:
        """Return the config of a stage by its dotted name."""
        config = attrgetter(name)(self.config)
        assert isinstance(config, StageConfig)
        return config

    def folder(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.out / Path(*name.split("."))

    def vae_folder(self) -> Path:
        """Return the folder of the VAE; raise AnchorEditError if it is missing or unfinished."""
        return self._part("vae", "the VAE")

    def text_folder(self) -> Path:
        """Return the folder of the text encoder; raise AnchorEditError if it is missing or unfinished."""
        return self._part("text", "the text encoder")

    def encoders(self, device: str | torch.device) -> Encoders:
        """Return the VAE and the text encoder, which load on first use."""
        dtype = torch.bfloat16 if self.config.engine.precision == "bfloat16" else torch.float32
        compiled = self.config.data.compile and torch.device(device).type == "cpu"
        return Encoders(self.vae_folder(), self.text_folder(), device, dtype, compiled)

    def cache(self) -> Path:
        """Return the folder of encoded sessions."""
        return Path(self.config.data.cache) if self.config.data.cache else self.out / "cache"

    def source(self, kind: type[Stage], encoders: Encoders) -> Source:
        """Return the encoded sessions of a stage."""
        config = self.config
        settings, cache = self.settings(kind.name), self.cache()
        return open_source(config.data, settings, config.edit, kind.layouts, encoders, cache, self.accelerator)

    def init(self, name: str, text_dim: int) -> WeightInit:
        """Return the initial weights of a stage's main network.

        A stage after a LoRA stage continues with its adapters on the initial weights of that stage, so that the last
        LoRA file belongs to a model that others have too.
        """
        sizes = replace(self.config.model, text_dim=text_dim)
        if given := self.settings(name).init:
            return file_init(given, sizes)
        if name in BEFORE:
            before = BEFORE[name]
            checkpoint = self._checkpoint(before, f"{name}.init")
            if self.config.lora.rank and (lora := self.folder(before) / LORA).is_file():
                return lora_init(self.init(before, text_dim), lora, self.config.lora)
            return file_init(str(checkpoint), sizes)
        if self.config.parts.transformer == "random":
            return random_init(sizes, self.config.engine.seed)
        if not self.config.parts.transformer:
            raise AnchorEditError(
                "the first stage has no initial weights",
                "--set parts.transformer=FILE_OR_FOLDER of Wan 2.1, or =random",
            )
        return file_init(self.config.parts.transformer, sizes)

    def teacher(self, text_dim: int) -> WeightInit:
        """Return the weights of the teacher of stage 3: those that the config names, or those of stage 2."""
        sizes = replace(self.config.model, text_dim=text_dim)
        given = self.config.distill.teacher
        return file_init(given or str(self._checkpoint("causal", "distill.teacher")), sizes)

    def missing(self, kind: type[Stage], trained: Collection[str] = ()) -> list[str]:
        """Return one line with its remedy for each missing input of a stage; stages `trained` will exist by then."""
        name, text_dim = kind.name, self.config.model.text_dim
        needed: list[Callable] = [lambda: find_parts(self.config.data, self.config.edit, kind.layouts)]
        if self.settings(name).init or BEFORE.get(name) not in trained:
            needed.append(lambda: self.init(name, text_dim))
        if name in _NEEDS_TEACHER and (self.config.distill.teacher or "causal" not in trained):
            needed.append(lambda: self.teacher(text_dim))
        return error_lines(needed)

    def last_checkpoint(self) -> Path:
        """Return the checkpoint of the last stage that has one; raise AnchorEditError if none has."""
        for kind in reversed([kind for kinds in STAGES.values() for kind in kinds]):
            path = self.folder(kind.name) / CHECKPOINT
            if path.is_file():
                return path
        raise AnchorEditError(
            f"'{self.out}' has no trained transformer", "Train a stage first, or --set export.transformer=FILE"
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """Return the accelerator of this process, made on first use."""
        return make_accelerator()

    def _train(self, kind: type[Stage], resume: bool) -> bool:
        folder = self.folder(kind.name)
        resumed = latest_state(folder / "state") is not None
        if resumed and not resume:
            raise AnchorEditError(f"'{folder}' has a training state", "Continue with --resume, or give another --out")
        engine = self._engine(kind)
        if resumed:
            engine.resume()
        return engine.train()

    def _engine(self, kind: type[Stage]) -> Engine:
        torch._dynamo.config.recompile_limit = 64  # sessions of several lengths, with and without gradients
        name = kind.name
        encoders = self.encoders(self.accelerator.device)
        source = self.source(kind, encoders)
        text_dim = source.data.texts.states[""].shape[1]
        teacher = self.teacher(text_dim) if name in _NEEDS_TEACHER else None
        parts = StageParts(
            self.config, self.init(name, text_dim), teacher, encoders.vae, NetworkBuilder(self.config, self.accelerator)
        )
        stage = kind(self.settings(name), parts)
        return Engine(stage, source, self.folder(name), self.config, self.accelerator, encoders.vae)

    def has_budget(self, kind: type[Stage]) -> bool:
        """Say whether a stage runs: stage 3a or 3b without any budget is skipped."""
        settings = self.settings(kind.name)
        return len(STAGES.get(kind.name.split(".")[0], ())) == 1 or settings.steps > 0 or settings.minutes > 0

    def _checkpoint(self, name: str, setting: str) -> Path:
        path = self.folder(name) / CHECKPOINT
        if not path.is_file():
            raise AnchorEditError(f"no '{path}'", f"Train {name} first, or --set {setting}=FILE")
        return path

    def _part(self, command: str, what: str) -> Path:
        """Return the folder of a finished part: the one in the config, or that of this run."""
        given = getattr(self.config.parts, command)
        folder = Path(given) if given else self.out / FOLDERS[command]
        if not folder.is_dir():
            raise AnchorEditError(
                f"folder '{folder}' of {what} does not exist",
                f"Train it with python -m train {command}, or --set parts.{command}=FOLDER",
            )
        if not given and not is_finished(folder):
            raise AnchorEditError(
                f"the training of {what} in '{folder}' is not finished",
                f"Continue with python -m train {command} --resume, or use it unfinished with "
                f"--set parts.{command}={folder}",
            )
        return folder


def error_lines(calls: Iterable[Callable]) -> list[str]:
    """Return the texts of the AnchorEditErrors that the calls raise, each once."""
    lines = []
    for call in calls:
        try:
            call()
        except AnchorEditError as error:
            lines.append(str(error))
    return list(dict.fromkeys(lines))
