"""Transformers as training holds them: built or loaded, adapted, compiled, spread over the processes, optimised.

Several processes either each hold everything and average gradients (DDP, by accelerate) or share out weights,
gradients, optimisers and average (FSDP2, by torch's `fully_shard`, on GPUs and CPUs alike). accelerate's own FSDP2
plugin is not used because on CPUs it becomes DDP without a word, so what the tests run would not be what trains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from anchoredit_model.checkpoint.loading import load_transformer, read_checkpoint
from anchoredit_model.config import TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer

from .config import AdapterConfig, Config, EngineConfig, OptimiserConfig

_EMBEDDING_STD = 0.02  # of text and time embeddings at the start, as in Wan
_AVERAGE_WARM_UP = 10  # steps
_GELU_SCALE = 2 * math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Start:
    """Say what a network is built from.

    Sizes as trained (`text_dim` without the columns that are always zero), and the function that makes its weights,
    which only the process that needs them calls.

    name      of the weights, for people
    adapters  those of peft that training goes on with, by peft's names; None: new ones, if any
    """

    sizes: TransformerConfig
    weights: Callable[[], dict[str, Tensor]]
    name: str = "random"
    adapters: dict[str, Tensor] | None = None


class Network:
    """One transformer of a stage.

    module   the bare transformer, sharded under FSDP2: what remembers, samples and is saved
    forward  what a loss with a gradient calls: `module`, or its DDP wrapper
    base     name of the weights that it began with, without adapters
    """

    def __init__(
        self, module: CausalWanTransformer, forward: nn.Module, base: str, optimiser: OptimiserConfig | None = None
    ):
        self.module = module
        self.forward = forward
        self.base = base
        self.settings = optimiser
        self.optimisers = make_optimisers(module, optimiser) if optimiser else []
        self.average: EMA | None = None

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def sync_gradients(self, wanted: bool) -> None:
        """Whether the next backward pass exchanges gradients; by DDP only the last of a step needs to.

        Shards always do: kept back, every process would hold the gradients of all weights, in float32.
        """
        if self.forward is not self.module:
            self.forward.require_backward_grad_sync = wanted

    def update(self, progress: float, step: int) -> tuple[float, float]:
        """One step of every optimiser and of the average; the gradient's norm before clipping and the rate.

        Raises AnchorEditError, and changes nothing, if the norm is not finite.
        """
        rate = self.settings.rate(progress)
        norm = nn.utils.clip_grad_norm_(self.learned().values(), self.settings.clip)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        if not math.isfinite(norm):
            raise AnchorEditError(
                f"the norm of the gradient is {norm} in step {step}",
                f"Lower the learning rate {self.settings.lr:g} and go on from the last state with --resume",
            )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self, step)
        return norm, rate


class EMA:
    """Exponential moving average of a network's trained parameters, in a network of its own of the same build."""

    def __init__(self, network: Network, decay: float):
        self.network = network
        self.decay = decay
        network.module.requires_grad_(False)

    def tensors(self, source: Network) -> dict[str, Tensor]:
        """Return the averaged parameters, by name."""
        mine = dict(self.network.module.named_parameters())
        return {name: mine[name].detach() for name in source.learned()}

    @torch.no_grad()
    def update(self, source: Network, step: int) -> None:
        """Step 1 is the first; shards of FSDP2 are averaged where they lie."""
        decay = min(self.decay, (1 + step) / (_AVERAGE_WARM_UP + step))  # the first steps are soon forgotten
        now = [parameter.detach() for parameter in source.learned().values()]
        torch._foreach_lerp_(list(self.tensors(source).values()), now, 1 - decay)


class Builder:
    """Makes a stage's networks, all alike in how they are spread and compiled."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator

    def trained(self, start: Start, optimiser: OptimiserConfig, ema: float | None = None) -> Network:
        """Return a network to train, or its adapters if there is a LoRA rank, with its average if `ema` is given."""
        network = self._network(start, trainable=True, optimiser=optimiser)
        if ema is not None:
            network.average = EMA(self._network(start, trainable=True), ema)
        return network

    def frozen(self, start: Start) -> Network:
        """Return a network that only answers, held in the precision it computes in."""
        half = torch.bfloat16 if self.config.engine.precision == "bfloat16" else torch.float32
        return self._network(start, trainable=False, dtype=half)

    def _network(self, start, trainable, dtype=torch.float32, optimiser=None) -> Network:
        engine, accelerator = self.config.engine, self.accelerator
        lora = self.config.lora if trainable else AdapterConfig()
        sharded = accelerator.num_processes > 1 and engine.parallel == "fsdp"
        module = None
        if accelerator.is_main_process or not sharded:
            module = CausalWanTransformer(start.sizes)
            module.load_state_dict(start.weights())
            module = adapted(module, lora, engine.seed).to(dtype)
            if lora.rank and start.adapters:
                module.load_state_dict(start.adapters, strict=False)  # of their layers, see `lora_start`
        if sharded:
            build = partial(_empty, start.sizes, lora, dtype)
            module = shard(module, build, engine, accelerator.device.type)
        module.to(accelerator.device)
        if not trainable:
            module.requires_grad_(False)
        module.gradient_checkpointing = engine.checkpointing
        if engine.compile:  # block by block: one short compilation serves all of them
            for block in module.blocks:
                block.ffn[1] = CompiledGelu()
                block.compile(dynamic=False)
        wrapped = optimiser is not None and accelerator.num_processes > 1 and not sharded
        return Network(module, accelerator.prepare_model(module) if wrapped else module, start.name, optimiser)


def shard(
    full: CausalWanTransformer | None, build: Callable[[], CausalWanTransformer], engine: EngineConfig, device: str
) -> CausalWanTransformer:
    """Return a transformer sharded over all processes.

    `full`, with its weights, is needed in the first process only.
    """
    # torch warns of writing into what a block returns, which nothing does
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    module = build()
    # Blocks are gathered in bfloat16. What surrounds them stays in float32, and nothing casts inputs: times among them.
    half = torch.bfloat16 if engine.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in module.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        register_fsdp_forward_method(block, "text_kv")
    outer = replace(policy, param_dtype=None)
    fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=outer)
    for method in ("encode_frame", "embed_text"):
        register_fsdp_forward_method(module, method)
    module.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, full.state_dict() if full is not None else {}, options=options)
    return module


def _empty(sizes: TransformerConfig, lora: AdapterConfig, dtype: torch.dtype) -> CausalWanTransformer:
    """Return the transformer without any memory for its weights."""
    with torch.device("meta"):
        return adapted(CausalWanTransformer(sizes), lora).to(dtype)


class CompiledGelu(nn.Module):
    """nn.GELU(approximate="tanh") by the sigmoid that it is: compiled for a CPU, 2.5 times faster than a tanh.

    0.5 (1 + tanh u) = sigmoid 2u (https://arxiv.org/abs/1606.08415, section 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.sigmoid(_GELU_SCALE * (wide + 0.044715 * wide**3))).to(x.dtype)


def make_optimisers(module: CausalWanTransformer, settings: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for the rest, or AdamW for all."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    inner = module.blocks.parameters() if settings.kind == "muon" else ()
    matrices = [parameter for parameter in inner if parameter.requires_grad and parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in learned if id(parameter) not in chosen]
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        decay = settings.weight_decay
        optimisers.append(
            torch.optim.Muon(matrices, lr=settings.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        # vectors and embeddings are not decayed beside Muon, as usual
        decay = 0.0 if matrices else settings.weight_decay
        optimisers.append(torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, weight_decay=decay, fused=True))
    return optimisers


def adapted(module: CausalWanTransformer, lora: AdapterConfig, seed: int = 0) -> CausalWanTransformer:
    """Return the transformer with low-rank adapters and everything else frozen, by peft; itself at rank 0."""
    if not lora.rank:
        return module
    from peft import LoraConfig, inject_adapter_in_model

    names = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("blocks.") and name.endswith(lora.targets)
    ]
    if not names:
        raise AnchorEditError(
            f"lora.targets {list(lora.targets)} name no layer", "Give some of q, k, v, o, ffn.0, ffn.2"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapters = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
        return inject_adapter_in_model(adapters, module)


def merged(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights with peft's adapters added to what they adapt: W + alpha / rank * B A."""
    weights = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        if name != plain and name.endswith("weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.lora_{part}.default.weight"].float() for part in "AB")
            tensor = tensor + (module.get_submodule(layer).scaling["default"] * (up @ down)).to(tensor.dtype)
        weights[plain] = tensor
    return weights


def adapter_weights(state: dict[str, Tensor], alpha: float, rank: int) -> dict[str, Tensor]:
    """Return peft's adapters under the names that ComfyUI's LoRA loader reads."""
    found = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            plain = name.replace(".default.", ".")
            found[f"diffusion_model.{plain}"] = tensor
            found[f"diffusion_model.{plain.partition('.lora_')[0]}.alpha"] = torch.tensor(float(alpha))
    return found


# ------------------------------------------------------------------------------------------------ where to start


def random_start(sizes: TransformerConfig, seed: int) -> Start:
    """Wan's own random start: Xavier for linear layers, zero for the output, so that the first flow is zero."""

    def weights() -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = CausalWanTransformer(sizes)
            initialise(module)
        return module.state_dict()

    return Start(sizes, weights)


def file_start(path: str, sizes: TransformerConfig) -> Start:
    """Weights from a file or folder; raises AnchorEditError if it is of other sizes.

    Columns of the text embedding beyond `sizes.text_dim` are left out: they only ever meet zeros.
    """
    wanted = read_checkpoint(path).transformer_config  # the weights stay on disk
    for name in ("dim", "ffn_dim", "num_heads", "num_layers"):
        if getattr(wanted, name) != getattr(sizes, name):
            raise AnchorEditError(
                f"'{path}' has {name} {getattr(wanted, name)}, the config asks for {getattr(sizes, name)}",
                f"Give another file, or --set model.{name}={getattr(wanted, name)}",
            )

    def weights() -> dict[str, Tensor]:
        state = load_transformer(path)[0].state_dict()
        first = state["text_embedding.0.weight"]
        if first.shape[1] < sizes.text_dim:
            raise AnchorEditError(
                f"'{path}' reads text of width {first.shape[1]}, the text encoder's is {sizes.text_dim}",
                "Give the encoder that belongs to it",
            )
        return {**state, "text_embedding.0.weight": first[:, : sizes.text_dim].contiguous()}

    return Start(sizes, weights, path)


def lora_start(base: Start, path: Path, lora: AdapterConfig) -> Start:
    """Return the base with the adapters of a LoRA file that the stage before left, to go on with.

    Raises AnchorEditError if the file cannot be read, or has adapters of another base, rank, alpha or of other layers.
    """
    remedy = "give the settings of the stage before, or its merged weights as this one's init"
    try:
        with safe_open(path, framework="pt") as file:
            found, of = {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get("base")
    except (SafetensorError, OSError) as error:
        raise AnchorEditError(f"LoRA '{path}' cannot be read ({error})", f"{remedy}") from error
    if of != base.name:
        raise AnchorEditError(
            f"the adapters in '{path}' belong to the weights '{of}', not to '{base.name}'", f"{remedy}"
        )
    alphas = {found.pop(name).item() for name in list(found) if name.endswith(".alpha")}
    state = {
        name.removeprefix("diffusion_model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in found.items()
    }
    with torch.device("meta"):
        module = adapted(CausalWanTransformer(base.sizes), lora)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items() if ".lora_" in name}
    if alphas != {lora.alpha} or {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise AnchorEditError(
            f"'{path}' has other adapters than lora.rank {lora.rank}, lora.alpha {lora.alpha:g} and lora.targets "
            f"{list(lora.targets)} make",
            f"{remedy}",
        )
    return replace(base, adapters=state)


def widen_text(state: dict[str, Tensor], text_dim: int) -> dict[str, Tensor]:
    """Return the same weights for texts whose states are zero-padded to `text_dim`."""
    weight = state["text_embedding.0.weight"]
    return {**state, "text_embedding.0.weight": F.pad(weight, (0, text_dim - weight.shape[1]))}


def initialise(module: CausalWanTransformer) -> None:
    """Wan's own start, in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    for embedding in (module.text_embedding, module.time_embedding):
        for part in embedding:
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=_EMBEDDING_STD)
    nn.init.xavier_uniform_(module.patch_embedding.weight.flatten(1))
    nn.init.zeros_(module.head.head.weight)
