"""Report what a run would do and need, without running it: sizes, steps, memory, data.

Memory is computed, not guessed: weights, gradients, optimisers and EMAs from the shapes of the networks; activations
from the tensors that a forward of one and of two layers saves for its backward pass, with fake tensors that have no
memory. Not included: fragmentation, and the buffers of attention and communication.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anchoredit_model.config import TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer
from anchoredit_model.networks.vae import ImageVAE

from .config import CausalConfig, Config, ConsistencyConfig, DistributionMatchingConfig, LoraConfig
from .curriculum import Curriculum, error_lines
from .data.source import find_parts
from .lora import add_adapters
from .stages.registry import STAGES
from .state import latest_state

_FLOAT, _HALF = 4, 2  # bytes
_ROWS = 32  # of a typical text
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Hold the device memory of one process in bytes."""

    weights: float
    gradients: float
    optimiser: float
    ema: float
    frozen: float
    activations: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def missing(command: str, config: Config, out: Path) -> list[str]:
    """Return one line with its remedy for each missing input of `command`."""
    curriculum = Curriculum(config, out)
    if command in ("vae", "text"):
        return []
    whole = command == "all"  # trains the parts that the config does not give
    folders = {"vae": curriculum.vae_folder, "text": curriculum.text_folder}
    found = error_lines(find for part, find in folders.items() if getattr(config.parts, part) or not whole)
    if command == "export" and not config.export.transformer:
        found += error_lines([curriculum.last_checkpoint])
    stages = {"all": tuple(STAGES), "ablations": ("pretrain",), "export": ()}.get(command, (command,))
    trained: list[str] = []
    for kind in (kind for stage in stages for kind in STAGES[stage] if curriculum.has_budget(kind)):
        found += [line for line in curriculum.missing(kind, trained) if line not in found]
        trained.append(kind.name)
    return found


def report(command: str, config: Config, out: Path) -> str:
    """Describe what `command` would do, in lines."""
    curriculum = Curriculum(config, out)
    sizes, edit = config.model, config.edit
    total, trained, _ = parameters(sizes, config.lora)
    side = edit.resolution // ImageVAE.spatial_factor
    lines = [
        f"model: {total / 1e6:.1f} M weights, {trained / 1e6:.1f} M trainable; "
        f"{sizes.num_layers} layers of {sizes.dim}, {sizes.num_heads} heads",
        f"images: {edit.resolution}x{edit.resolution}, latents {side}x{side}, {tokens(config)} tokens per frame",
    ]
    stages = STAGES if command == "all" else {command: STAGES[command]} if command in STAGES else {}
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    for kinds in stages.values():
        for kind in kinds:
            settings = curriculum.settings(kind.name)
            budget = [f"{settings.steps} steps"] if settings.steps else []
            budget += [f"{settings.minutes:g} minutes"] if settings.minutes else []
            sessions = settings.batch * settings.micro_batches
            lines.append(
                f"{kind.name}: {' or '.join(budget) or 'no budget'}, {sessions} sessions per step "
                f"({settings.micro_batches} micro-batches of {settings.batch}, {world_size} processes), "
                f"{settings.optimiser.kind} at {settings.optimiser.lr:g}"
            )
            memory = estimate(kind.name, config, world_size)
            parts = ", ".join(f"{name} {value / _GIB:.2f}" for name, value in vars(memory).items())
            lines.append(f"  memory per process: {memory.total / _GIB:.2f} GiB ({parts})")
            lines.append(f"  data: {_data(config, kind.layouts)}")
            lines.append(f"  {_state(curriculum, kind.name)}")
    return "\n".join(lines)


def tokens(config: Config) -> int:
    """Return the number of tokens of one frame."""
    side = config.edit.resolution // ImageVAE.spatial_factor
    return (side // config.model.patch_size[1]) * (side // config.model.patch_size[2])


def parameters(sizes: TransformerConfig, lora: LoraConfig) -> tuple[int, int, int]:
    """Return the numbers of all weights, of the trainable ones, and of those in matrices of the blocks."""
    with torch.device("meta"):
        module = add_adapters(CausalWanTransformer(sizes), lora)
    total = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    inner = [parameter for parameter in module.blocks.parameters() if parameter.requires_grad]
    return total, trainable, sum(parameter.numel() for parameter in inner if parameter.ndim == 2)


def estimate(name: str, config: Config, world_size: int) -> Memory:
    """Return the memory of one of `world_size` processes in the stage of this name."""
    settings = Curriculum(config, Path()).settings(name)
    total, trainable, matrices = parameters(config.model, config.lora)
    networks = 2 if name == "distill.matching" else 1  # the fake score learns as well
    teachers = 1 if name.startswith("distill") else 0
    shared = world_size if config.engine.parallel == "fsdp" else 1
    half = _HALF if config.engine.precision == "bfloat16" else _FLOAT
    moments = 2 * trainable if settings.optimiser.kind == "adamw" else 2 * (trainable - matrices) + matrices
    moments += 2 * trainable * (networks - 1)
    return Memory(
        weights=_FLOAT * total * networks / shared,
        gradients=_FLOAT * trainable * networks / shared,
        optimiser=_FLOAT * moments / shared,
        ema=_FLOAT * total / shared,
        frozen=half * total * teachers / shared,
        activations=activations(config, *largest_forward(name, config)),
    )


def largest_forward(name: str, config: Config) -> tuple[int, int]:
    """Return the sequences and frames of the stage's largest forward.

    Shards are assumed to hold chains of the length that stage 2 uses; stage 1 splits them into pairs.
    """
    settings = Curriculum(config, Path()).settings(name)
    if name == "pretrain":
        if config.data.path:
            return settings.batch * config.causal.turns, 2
        return settings.batch, 1 + config.data.star_turns
    assert isinstance(settings, (CausalConfig, ConsistencyConfig, DistributionMatchingConfig))
    turns = settings.turns
    if name == "distill.matching" or (name == "causal" and config.causal.forcing != "teacher"):
        return settings.batch, turns + 1
    return settings.batch, 2 * turns


def activations(config: Config, batch: int, count: int) -> float:
    """Return the bytes that a forward of `count` frames saves for its backward pass."""
    model, checkpointing = config.model, config.engine.checkpointing
    one, two = (_saved(replace(model, num_layers=n), config, batch, count, checkpointing) for n in (1, 2))
    recomputed = 0  # saved by one layer while it is computed again
    if checkpointing:
        recomputed = _saved(replace(model, num_layers=1), config, batch, count, False) - one
    return one + (model.num_layers - 1) * (two - one) + recomputed


def _saved(sizes: TransformerConfig, config: Config, batch: int, count: int, checkpointing: bool) -> int:
    seen: dict[int, int] = {}
    side = config.edit.resolution // ImageVAE.spatial_factor
    half = config.engine.precision == "bfloat16"

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, half, cache_enabled=False):
        module = CausalWanTransformer(sizes)
        module.gradient_checkpointing = checkpointing
        weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        latents = torch.zeros(batch, sizes.in_channels, count, side, side)
        text = torch.zeros(batch, count, _ROWS, sizes.text_dim)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            flow = module(latents, torch.zeros(batch, count), text)
        del flow
    return sum(seen.values())


def _data(config: Config, layouts: tuple[str, ...]) -> str:
    """Describe the data without opening it."""
    try:
        parts, star = find_parts(config.data, config.edit, layouts)
    except AnchorEditError as error:
        return f"none: {error}"
    if not config.data.path:
        layout = "stars" if star else "chains"
        count = config.data.stars if star else config.data.chains
        return f"studio, {count} {layout} of {config.data.star_turns if star else config.data.chain_turns} edits"
    return f"{len(parts)} shards in '{config.data.path}'"


def _state(curriculum: Curriculum, name: str) -> str:
    found = latest_state(curriculum.folder(name) / "state")
    return f"continues from '{found}' with --resume" if found else "starts from its initial weights"
