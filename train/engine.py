"""The engine: runs a stage over its budget, on one process or many.

A step is a fixed number of micro-batches, each with its own sessions and random numbers, which the processes share
out; so 1, 2 or 64 of them learn the same. Several processes are started by accelerate or torchrun:

    accelerate launch --num_processes 8 -m train pretrain --config wan.yaml --out runs/wan
    torchrun --nnodes 4 --nproc-per-node 8 ... -m train causal --config wan.yaml --out runs/wan

Ctrl-C ends after the step that is under way and saves.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

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
from .networks import Network, adapter_weights, merged, widen_text
from .stages.rollout import SessionCache, rollout
from .stages.stage import Draws, Stage
from .state import States

CHECKPOINT = "transformer.safetensors"
LORA = "lora.safetensors"


def make_accelerator() -> Accelerator:
    """Return the processes.

    Without `cpu`, those on a machine that has nothing else would each believe they are alone.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # for CPUs too, see `attention`
    return Accelerator(cpu=not torch.accelerator.is_available())


def arithmetic(config: Config, device: torch.device) -> AbstractContextManager:
    """Matrices in bfloat16, if the config wants that: for forward passes.

    Casts of weights are not cached: those made without a gradient, in a rollout, would stand in for the ones that
    learn.
    """
    return torch.autocast(device.type, torch.bfloat16, config.engine.precision == "bfloat16", cache_enabled=False)


def attention(device: torch.device) -> AbstractContextManager:
    """On a CPU attention as products of matrices: for forward passes, and backward ones that may repeat them.

    The fused attention of a CPU has a backward pass that goes without its matrix units: 4 times slower.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Engine:
    """Trains `stage` on `source` and keeps everything about it in `folder`."""

    def __init__(
        self, stage: Stage, source: Source, folder: Path, config: Config, accelerator: Accelerator, vae: ImageVAE | None
    ):
        self.stage, self.source, self.folder = stage, source, folder
        self.config, self.accelerator, self.vae = config, accelerator, vae
        self.settings = stage.settings
        self.states = States(folder / "state", accelerator)
        self.step = 0  # finished steps
        self.spent = 0.0  # seconds in them
        self.saved_step: int | None = None  # of the newest state
        self.interrupt = Interrupt(alone=accelerator.num_processes == 1)
        self.stopping = False  # all processes agree on it
        if self.settings.steps <= 0 and self.settings.minutes <= 0:
            raise AnchorEditError(f"{stage.name} has no budget", f"Set {stage.name}.steps or {stage.name}.minutes")
        if self.settings.micro_batches % accelerator.num_processes:
            raise AnchorEditError(
                f"{self.settings.micro_batches} micro-batches cannot be shared out among {accelerator.num_processes} "
                f"processes",
                f"Set {stage.name}.micro_batches to a multiple of that",
            )

    @property
    def progress(self) -> float:
        """The share of the budget that is used up; the schedules run over it."""
        by_steps = self.step / self.settings.steps if self.settings.steps else 0.0
        by_minutes = self.spent / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    @property
    def identity(self) -> dict[str, str | int | float]:
        """What decides what a step learns from: the same steps of another one are other steps."""
        facts = {**self.source.identity, "seed of the draws": self.config.engine.seed}
        return {**facts, "base of the adapters": self.stage.main.base} if self.config.lora.rank else facts

    def resume(self) -> None:
        """Go on where the newest state is. Raises AnchorEditError if its steps were made of other data or draws."""
        saved = self.states.load(self.stage.networks)
        for name, value in self.identity.items():
            there = saved["source"].get(name, value)  # states of before may say less
            if there != value:
                raise AnchorEditError(
                    f"the {name} of the state in '{self.folder}' is {there}, this run's is {value}",
                    "Resume with the "
                    "data, VAE, text encoder, seeds, batch and micro_batches it was made with, or give another --out",
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
            elif self._first_says(checkpoint_step(self.folder) != self.step):  # ended after its last state, before it
                self._write_checkpoint()
        if log:
            log.close()
        if self.stopping and self.accelerator.is_main_process:
            print(f"{self.stage.name}: stopped and saved at step {self.step}: go on with --resume", flush=True)
        return self.progress >= 1 and not self.stopping

    def train_step(self) -> dict[str, float]:
        """One step of every network that learns in it: losses, gradient norms and rates."""
        values = {}
        for learner in self.stage.learners(self.step):
            network = self.stage.networks[learner]
            losses = []
            mine = list(self._mine())
            for number, micro in enumerate(mine):
                network.sync_gradients(number + 1 == len(mine))
                draws = Draws.of(
                    self.config.engine.seed, self.stage.name, learner, self.step, micro, self.accelerator.device
                )
                batch = self.source.batch(self.step, micro).to(self.accelerator.device)
                with attention(self.accelerator.device):
                    with arithmetic(self.config, self.accelerator.device):
                        loss = self.stage.loss(learner, batch, draws, self.progress)
                    (loss / len(mine)).backward()
                losses.append(loss.detach())
            loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
            if not torch.isfinite(loss):
                raise AnchorEditError(
                    f"the loss of {learner} is {loss.item()} at step {self.step}",
                    "Lower the learning rate and resume from the last state",
                )
            norm, rate = network.update(self.progress, self.step + 1)
            values |= {f"loss/{learner}": loss.item(), f"gradient/{learner}": norm, f"rate/{learner}": rate}
        return values

    def save(self) -> None:
        """Write what training goes on from, and the averaged weights as a checkpoint to use."""
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
        """Whether it is time to save; the first process's clock decides."""
        steps = self.config.engine.save_steps
        if steps and self.step % steps == 0:
            return True
        return self._first_says(seconds > 60 * self.config.engine.save_minutes)

    def _agree(self, seconds: float) -> None:
        """All processes go by the first one's clock, and stop together if one is to stop."""
        if self.accelerator.num_processes == 1:
            self.spent += seconds
            self.stopping = self.interrupt.asked
            return
        device = self.accelerator.device
        self.spent += self._from_first(torch.tensor(seconds, device=device)).item()
        stopping = torch.tensor(float(self.interrupt.asked), device=device)
        self.stopping = self.accelerator.reduce(stopping, "sum").item() > 0

    def _first_says(self, answer: bool) -> bool:
        return bool(self._from_first(torch.tensor(float(answer), device=self.accelerator.device)))

    def _from_first(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(value, 0)
        return value

    def _log(self) -> Log | None:
        """Return the first process's log, beside the settings of the run."""
        if not self.accelerator.is_main_process:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "config.yaml", "settings") as unfinished:
            unfinished.write_text(to_yaml(self.config), encoding="utf-8")
        return Log(self.folder, self.step, self.stage.name, self.progress)

    def _sample(self, log: Log | None) -> None:
        """Return a grid to look at: a session per two rows, the truth above what the average makes of it."""
        batch = self.source.shown(self.config.engine.sample_sessions).to(self.accelerator.device)
        if self.vae is None or not len(batch.latents):
            return
        made = sample_sessions(self.stage, batch, self.accelerator.device)
        if log:
            log.images("samples", grid(batch.latents, made, self.vae), self.step)


def checkpoint_step(folder: Path) -> int | None:
    """Return the step whose weights the checkpoint in a stage's folder holds.

    None if there is none, or it does not say.
    """
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def write_checkpoint(folder: Path, network: Network, stage: Stage, step: int, accelerator: Accelerator) -> None:
    """Return the averaged weights as one file that everything reads; with adapters also a LoRA file of them alone.

    The LoRA file's metadata has `base`, the weights that it belongs to, as the config names them. The checkpoint comes
    last: the step that it names is that of both.
    """
    config = stage.config
    source = network.average.network if network.average else network
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(source.module, options=options)
    if not accelerator.is_main_process:
        return
    if config.lora.rank:
        adapters = adapter_weights(state, config.lora.alpha, config.lora.rank)
        with atomic_write(folder / LORA, "LoRA") as unfinished:
            save_file(adapters, unfinished, {"format": "pt", "base": network.base})
    weights = widen_text(merged(state, source.module), config.model.text_dim)
    save_checkpoint(folder / CHECKPOINT, weights, config.model, stage.edit, step=str(step))


@torch.no_grad()
def sample_sessions(stage: Stage, batch: Batch, device: torch.device) -> Tensor:
    """Return what the averaged weights make of the sessions' instructions, [B, T + 1, C, h, w], turn by turn.

    Of a star only the first edit is made: its others do not follow it.
    """
    batch = batch.first(1) if batch.star else batch
    network = stage.main.average.network if stage.main.average else stage.main
    cache = SessionCache(network.module, slots=stage.slots, stride=stage.stride)
    edit, turns = stage.edit, batch.latents.shape[1] - 1
    generator = torch.Generator(device).manual_seed(0)  # the same noise each time, to compare
    draws = len(edit.timesteps) if edit.sampler == "renoise" else 1
    noise = torch.randn(turns, draws, *batch.latents[:, 0].shape, generator=generator, device=device)
    eager = torch.compiler.set_stance("force_eager")  # many shapes, few calls
    with arithmetic(stage.config, device), attention(device), eager:
        return rollout(cache, batch.latents, batch.text, noise, edit)


def grid(truth: Tensor, made: Tensor, vae: ImageVAE) -> Tensor:
    """Images of sessions [B, T + 1, C, h, w] as one [3, H, W]: the truth, and below it what was made."""
    turns = min(truth.shape[1], made.shape[1])
    rows = torch.stack([truth[:, :turns], made[:, :turns]], dim=1).flatten(0, 1)  # [2 B, turns, C, h, w]
    with torch.no_grad():
        images = vae.decode(rows.flatten(0, 1).to(vae.device, vae.dtype)).float().cpu()
    images = images.unflatten(0, rows.shape[:2]).clamp(0, 1)  # [2 B, turns, 3, H, W]
    return images.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
