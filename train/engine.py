"""The engine: trains a stage over its budget, in one process or many.

A step is a fixed number of micro-batches, each with its own sessions and random numbers, divided among the processes,
so that training does not depend on the number of processes. Several processes are started by accelerate or torchrun:

    accelerate launch --num_processes 8 -m train pretrain --config wan.yaml --out runs/wan
    torchrun --nnodes 4 --nproc-per-node 8 ... -m train causal --config wan.yaml --out runs/wan

Ctrl-C stops after the current step and saves.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.attention import SDPBackend, sdpa_kernel

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.checkpoint.saving import save_checkpoint
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.vae import ImageVAE

from .config import Config
from .config_io import to_yaml
from .data.source import Batch, Source
from .interrupt import Interrupt
from .log import Log
from .lora import comfyui_lora, merge_adapters
from .networks import TrainableNetwork
from .stages.rollout import SessionCache, noise_count, rollout
from .stages.stage import RandomStreams, Stage
from .state import States
from .weight_init import widen_text

CHECKPOINT = "transformer.safetensors"
LORA = "lora.safetensors"


def make_accelerator() -> Accelerator:
    """Return the accelerator of this process.

    Without `cpu` on a machine that has no other device, every process would take itself for the only one.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # for CPUs too, see `attention`
    return Accelerator(cpu=not torch.accelerator.is_available())


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """Return a context for forward passes that multiplies matrices in bfloat16 if the config says so.

    Casts of weights are not cached: those made in a rollout, without a gradient, would be used by the loss.
    """
    return torch.autocast(device.type, torch.bfloat16, config.engine.precision == "bfloat16", cache_enabled=False)


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Return a context that computes attention as plain matrix products on a CPU.

    For forward passes, and for backward passes, which may repeat them. The backward pass of a CPU's fused attention
    does not use its matrix units and is 4 times slower.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Engine:
    """Train `stage` on `source` and keep its files in `folder`."""

    def __init__(
        self, stage: Stage, source: Source, folder: Path, config: Config, accelerator: Accelerator, vae: ImageVAE | None
    ):
        self.stage, self.source, self.folder = stage, source, folder
        self.config, self.accelerator, self.vae = config, accelerator, vae
        self.settings = stage.settings
        self.states = States(folder / "state", accelerator)
        self.step = 0  # finished steps
        self.spent = 0.0  # seconds in them
        self.saved_step: int | None = None  # of the latest state
        self.interrupt = Interrupt(single_process=accelerator.num_processes == 1)
        self.stopping = False  # the same in all processes
        if self.settings.steps <= 0 and self.settings.minutes <= 0:
            raise AnchorEditError(f"{stage.name} has no budget", f"Set {stage.name}.steps or {stage.name}.minutes")
        if self.settings.micro_batches % accelerator.num_processes:
            raise AnchorEditError(
                f"{stage.name}.micro_batches must be a multiple of the {accelerator.num_processes} processes, got "
                f"{self.settings.micro_batches}",
                "Set it to one",
            )

    @property
    def progress(self) -> float:
        """The share of the budget that is used up; schedules run over it."""
        by_steps = self.step / self.settings.steps if self.settings.steps else 0.0
        by_minutes = self.spent / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    @property
    def identity(self) -> dict[str, str | int | float]:
        """What determines the data and random numbers of every step."""
        identity = {**self.source.identity, "random seed": self.config.engine.seed}
        return {**identity, "base of the adapters": self.stage.main.base} if self.config.lora.rank else identity

    def resume(self) -> None:
        """Continue from the latest state; raise AnchorEditError if it was trained on other data or random numbers."""
        saved = self.states.load(self.stage.networks)
        for name, value in self.identity.items():
            found = saved["source"].get(name, value)  # states of older versions lack some
            if found != value:
                raise AnchorEditError(
                    f"the {name} must be that of the state in '{self.folder}', {found}, got {value}",
                    "Resume with its data, VAE, text encoder, seeds, batch and micro_batches, or give another --out",
                )
        self.step, self.spent = saved["step"], saved["spent"]
        self.saved_step = self.step

    def train(self) -> bool:
        """Train until the budget is used up, then write the checkpoint; False if it was interrupted."""
        if self.accelerator.is_main_process:
            for line in self.source.describe():
                print(f"{self.stage.name}: {line}", flush=True)
        log = self._log()
        saved = time.monotonic()
        with self.interrupt:
            while self.progress < 1 and not self.stopping:
                began = time.monotonic()
                values = self.train_step()
                self.step += 1
                self._agree(time.monotonic() - began)
                if log:
                    log.add(values, self.progress)
                if self.step % self.config.engine.log_steps == 0 and log:
                    log.line(self.step, {"minutes": self.spent / 60})
                if self.config.engine.sample_steps and self.step % self.config.engine.sample_steps == 0:
                    self._sample(log)
                if self._due(time.monotonic() - saved):
                    self.save()
                    saved = time.monotonic()
            self.interrupt.saving = True
            if self.saved_step != self.step:
                self.save()
            elif self._decided_by_first(checkpoint_step(self.folder) != self.step):  # killed between the two files
                self._write_checkpoint()
        if log:
            log.close()
        if self.stopping and self.accelerator.is_main_process:
            print(f"{self.stage.name}: stopped and saved at step {self.step}, continue with --resume", flush=True)
        return self.progress >= 1 and not self.stopping

    def train_step(self) -> dict[str, float]:
        """Run one step of every network that learns in it; return losses, gradient norms and learning rates."""
        values = {}
        for learner in self.stage.learners(self.step):
            network = self.stage.networks[learner]
            losses = []
            mine = list(self._mine())
            for number, micro in enumerate(mine):
                network.sync_gradients(number + 1 == len(mine))
                rng = RandomStreams.of(
                    self.config.engine.seed, self.stage.name, learner, self.step, micro, self.accelerator.device
                )
                batch = self.source.batch(self.step, micro).to(self.accelerator.device)
                with attention_kernel(self.accelerator.device):
                    with autocast(self.config, self.accelerator.device):
                        loss = self.stage.loss(learner, batch, rng, self.progress)
                    (loss / len(mine)).backward()
                losses.append(loss.detach())
            loss = self._reduced(torch.stack(losses).mean(), "mean")
            if not math.isfinite(loss):
                raise AnchorEditError(
                    f"the loss of {learner} must be finite, got {loss} at step {self.step}",
                    "Lower the learning rate and resume from the last state",
                )
            norm, rate = network.update(self.progress, self.step + 1)
            values |= {f"loss/{learner}": loss, f"gradient/{learner}": norm, f"rate/{learner}": rate}
        return values

    def save(self) -> None:
        """Write a training state to resume from, and the averaged weights as a checkpoint to use."""
        progress = {"stage": self.stage.name, "step": self.step, "spent": self.spent, "progress": self.progress}
        progress["source"] = self.identity
        self.states.save(self.stage.networks, progress)
        self.saved_step = self.step
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        write_checkpoint(self.folder, self.stage.main, self.stage, self.step, self.accelerator)
        self.accelerator.wait_for_everyone()

    def _mine(self) -> range:
        """Return the micro-batches of this process."""
        return range(self.accelerator.process_index, self.settings.micro_batches, self.accelerator.num_processes)

    def _due(self, seconds: float) -> bool:
        """Say whether it is time to save, by the first process's clock."""
        steps = self.config.engine.save_steps
        if steps and self.step % steps == 0:
            return True
        return self._decided_by_first(seconds > 60 * self.config.engine.save_minutes)

    def _agree(self, seconds: float) -> None:
        """Take the first process's clock in all processes, and stop all of them if one is to stop."""
        if self.accelerator.num_processes == 1:
            self.spent += seconds
            self.stopping = self.interrupt.requested
            return
        device = self.accelerator.device
        self.spent += self._broadcast(torch.tensor(seconds, device=device)).item()
        self.stopping = self._reduced(torch.tensor(float(self.interrupt.requested), device=device), "sum") > 0

    def _decided_by_first(self, answer: bool) -> bool:
        return bool(self._broadcast(torch.tensor(float(answer), device=self.accelerator.device)))

    def _broadcast(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(value, 0)
        return value

    def _reduced(self, value: Tensor, how: str) -> float:
        reduced = self.accelerator.reduce(value, how)
        return torch.as_tensor(reduced).item()

    def _log(self) -> Log | None:
        """Write the settings of the run and open its log; None but in the first process."""
        if not self.accelerator.is_main_process:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "config.yaml", "settings") as unfinished:
            unfinished.write_text(to_yaml(self.config), encoding="utf-8")
        return Log(self.folder, self.step, self.stage.name, self.progress)

    def _sample(self, log: Log | None) -> None:
        """Log a grid of samples: two rows for each session, the truth above the samples of the averaged weights."""
        batch = self.source.preview(self.config.engine.sample_sessions).to(self.accelerator.device)
        if self.vae is None or not len(batch.latents):
            return
        sampled = sample_sessions(self.stage, batch, self.accelerator.device)
        if log:
            log.images("samples", grid(batch.latents, sampled, self.vae), self.step)


def checkpoint_step(folder: Path) -> int | None:
    """Return the step of the checkpoint in a stage's folder; None if there is none or it has no step."""
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def write_checkpoint(
    folder: Path, network: TrainableNetwork, stage: Stage, step: int, accelerator: Accelerator
) -> None:
    """Write the averaged weights as one file that everything reads, and a LoRA file of the adapters if there are any.

    The metadata of the LoRA file has `base`, the name of the weights that it belongs to. The checkpoint is written
    last: its step is that of both files.
    """
    config, averaged = stage.config, network.averaged
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(averaged.module, options=options))
    if not accelerator.is_main_process:
        return
    if config.lora.rank:
        with atomic_write(folder / LORA, "LoRA") as unfinished:
            save_file(comfyui_lora(state, config.lora.alpha), unfinished, {"format": "pt", "base": network.base})
    weights = widen_text(merge_adapters(state, averaged.module), config.model.text_dim)
    save_checkpoint(folder / CHECKPOINT, weights, config.model, stage.edit, step=str(step))


@torch.no_grad()
def sample_sessions(stage: Stage, batch: Batch, device: torch.device) -> Tensor:
    """Sample sessions [B, T + 1, C, h, w] turn by turn with the averaged weights.

    Of a star only the first edit is sampled: the others do not follow it.
    """
    batch = batch.first(1) if batch.star else batch
    cache = SessionCache(stage.main.averaged.module, slots=stage.slots, stride=stage.stride)
    edit, turns = stage.edit, batch.latents.shape[1] - 1
    generator = torch.Generator(device).manual_seed(0)  # the same noise each time, to compare
    noise = torch.randn(turns, noise_count(edit), *batch.latents[:, 0].shape, generator=generator, device=device)
    eager = torch.compiler.set_stance("force_eager")  # many shapes, few calls
    with autocast(stage.config, device), attention_kernel(device), eager:
        return rollout(cache, batch.latents, batch.text, noise, edit)


def grid(truth: Tensor, sampled: Tensor, vae: ImageVAE) -> Tensor:
    """Decode sessions [B, T + 1, C, h, w] into one image [3, H, W]: the truth, and below it the samples."""
    turns = min(truth.shape[1], sampled.shape[1])
    rows = torch.stack([truth[:, :turns], sampled[:, :turns]], dim=1).flatten(0, 1)  # [2 B, turns, C, h, w]
    with torch.no_grad():
        images = vae.decode(rows.flatten(0, 1).to(vae.device, vae.dtype)).float().cpu()
    images = images.unflatten(0, rows.shape[:2]).clamp(0, 1)  # [2 B, turns, 3, H, W]
    return images.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
