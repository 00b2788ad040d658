"""What a run would do and need, without doing it: sizes, steps, memory, data.

Memory is counted, not guessed, as far as it can be: weights, gradients, optimisers and averages from the networks'
shapes, activations from what a forward of one and of two layers saves for its backward pass, run on tensors that
have a shape and no memory. What the figure lacks: the allocator's waste, attention's and the communication's buffers.
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

from .config import LoraConfig, Config
from .curriculum import STAGES, Curriculum, refusals
from .data.source import find_parts
from .lora import add_adapters
from .state import newest

_FLOAT, _HALF = 4, 2  # bytes
_ROWS = 32  # of a text, typically
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    weights: float
    gradients: float
    optimiser: float
    average: float
    frozen: float
    activations: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def missing(command: str, config: Config, out: Path) -> list[str]:
    """Return what `command` would stop at because it is not there: a line for each, with its remedy."""
    curriculum = Curriculum(config, out)
    if command in ("vae", "text"):
        return []
    whole = command == "all"  # which trains what the config does not give
    folders = {"vae": curriculum.vae_folder, "text": curriculum.text_folder}
    found = refusals(find for part, find in folders.items() if getattr(config.parts, part) or not whole)
    if command == "export" and not config.export.transformer:
        found += refusals([curriculum.last_checkpoint])
    stages = {"all": tuple(STAGES), "ablations": ("pretrain",), "export": ()}.get(command, (command,))
    made: list[str] = []
    for kind in (kind for stage in stages for kind in STAGES[stage] if curriculum.wanted(kind)):
        found += [line for line in curriculum.missing(kind, made) if line not in found]
        made.append(kind.name)
    return found


def report(command: str, config: Config, out: Path) -> str:
    """Lines on what `command` would do."""
    curriculum = Curriculum(config, out)
    sizes, edit = config.model, config.edit
    total, learned, _ = parameters(sizes, config.lora)
    side = edit.resolution // ImageVAE.spatial_factor
    lines = [
        f"model: {total / 1e6:.1f} M weights, {learned / 1e6:.1f} M trained; {sizes.num_layers} layers of {sizes.dim}, "
        f"{sizes.num_heads} heads",
        f"images: {edit.resolution}x{edit.resolution}, latents {side}x{side}, {tokens(config)} tokens a frame",
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
                f"{kind.name}: {' or '.join(budget) or 'no budget'}, {sessions} sessions a step "
                f"({settings.micro_batches} micro-batches of {settings.batch}, {world_size} processes), "
                f"{settings.optimiser.kind} at {settings.optimiser.lr:g}"
            )
            memory = estimate(kind.name, config, world_size)
            parts = ", ".join(f"{name} {value / _GIB:.2f}" for name, value in vars(memory).items())
            lines.append(f"  memory of a process: {memory.total / _GIB:.2f} GiB ({parts})")
            lines.append(f"  data: {_data(config, kind.layouts)}")
            lines.append(f"  {_state(curriculum, kind.name)}")
    return "\n".join(lines)


def tokens(config: Config) -> int:
    """Tokens of one frame."""
    side = config.edit.resolution // ImageVAE.spatial_factor
    return (side // config.model.patch_size[1]) * (side // config.model.patch_size[2])


def parameters(sizes: TransformerConfig, lora: LoraConfig) -> tuple[int, int, int]:
    """How many weights there are, how many are trained, and how many of those are the blocks' matrices."""
    with torch.device("meta"):
        module = add_adapters(CausalWanTransformer(sizes), lora)
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    inside = [parameter for parameter in module.blocks.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in inside if parameter.ndim == 2]
    return tuple(sum(part.numel() for part in parts) for parts in (list(module.parameters()), learned, matrices))


def estimate(name: str, config: Config, world_size: int) -> Memory:
    """Bytes of one of `world_size` processes in the stage of this name."""
    settings = Curriculum(config, Path()).settings(name)
    total, learned, matrices = parameters(config.model, config.lora)
    trained = 2 if name == "distill.matching" else 1  # the fake score learns as well
    teachers = 1 if name.startswith("distill") else 0
    shared = world_size if config.engine.parallel == "fsdp" else 1
    half = _HALF if config.engine.precision == "bfloat16" else _FLOAT
    moments = 2 * learned if settings.optimiser.kind == "adamw" else 2 * (learned - matrices) + matrices
    moments += 2 * learned * (trained - 1)
    return Memory(
        weights=_FLOAT * total * trained / shared,
        gradients=_FLOAT * learned * trained / shared,
        optimiser=_FLOAT * moments / shared,
        average=_FLOAT * total / shared,
        frozen=half * total * teachers / shared,
        activations=activations(config, *largest_forward(name, config)),
    )


def largest_forward(name: str, config: Config) -> tuple[int, int]:
    """Sequences and frames of the stage's largest forward.

    Shards are taken to hold chains as long as stage 2 wants them, which stage 1 takes apart into pairs.
    """
    settings = Curriculum(config, Path()).settings(name)
    if name == "pretrain":
        if config.data.path:
            return settings.batch * config.causal.turns, 2
        return settings.batch, 1 + config.data.star_turns
    turns = settings.turns
    if name == "distill.matching" or (name == "causal" and config.causal.forcing != "teacher"):
        return settings.batch, turns + 1
    return settings.batch, 2 * turns


def activations(config: Config, batch: int, count: int) -> float:
    """Bytes that a forward of `count` frames leaves for its backward pass."""
    model, checkpointing = config.model, config.engine.checkpointing
    one, two = (_saved(replace(model, num_layers=n), config, batch, count, checkpointing) for n in (1, 2))
    again = 0  # what one layer leaves when it is computed again
    if checkpointing:
        again = _saved(replace(model, num_layers=1), config, batch, count, False) - one
    return one + (model.num_layers - 1) * (two - one) + again


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
    """Return what data is there, found without opening it."""
    try:
        parts, star = find_parts(config.data, config.edit, layouts)
    except AnchorEditError as error:
        return f"none: {error}"
    if not config.data.path:
        layout = "stars" if star else "chains"
        count = config.data.stars if star else config.data.chains
        return f"the studio, {count} {layout} of {config.data.star_turns if star else config.data.chain_turns} edits"
    return f"{len(parts)} files of sessions in '{config.data.path}'"


def _state(curriculum: Curriculum, name: str) -> str:
    found = newest(curriculum.folder(name) / "state")
    return f"goes on from '{found}' with --resume" if found else "starts anew"
