"""Transformers in training: built, compiled, distributed over the processes, optimised, averaged.

Several processes either each hold everything and average gradients (DDP, by accelerate) or shard weights, gradients,
optimisers and EMA (FSDP2, by torch's `fully_shard`, on GPUs and CPUs). accelerate's own FSDP2 plugin is not used
because on CPUs it silently becomes DDP, so that the tests would not run what trains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anchoredit_model.config import TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer, WanBlock

from .config import Config, EngineConfig, LoraConfig, OptimiserConfig
from .lora import add_adapters
from .weight_init import WeightInit

_EMA_WARM_UP = 10  # steps
_GELU_SCALE = 2 * math.sqrt(2 / math.pi)


class Network:
    """Hold one transformer of a stage.

    module  the bare transformer, sharded under FSDP2: has the K/V cache, samples and is saved
    base    name of its initial weights, without adapters
    """

    def __init__(self, module: CausalWanTransformer, base: str):
        self.module = module
        self.base = base


class TrainableNetwork(Network):
    """Hold one transformer with its optimisers and, if it has one, its EMA.

    forward  what a loss with a gradient calls: `module`, or its DDP wrapper
    """

    def __init__(self, module: CausalWanTransformer, forward: nn.Module, base: str, optimiser: OptimiserConfig):
        super().__init__(module, base)
        self.forward = forward
        self.settings = optimiser
        self.optimisers = make_optimisers(module, optimiser)
        self.ema: EMA | None = None

    @property
    def averaged(self) -> Network:
        """The network to sample, evaluate and export: the EMA, or this one if it has none."""
        return self.ema.network if self.ema else self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def sync_gradients(self, enabled: bool) -> None:
        """Say whether the next backward pass exchanges gradients; under DDP only the last of a step needs to.

        Under FSDP2 every one does: otherwise each process would hold the gradients of all weights, in float32.
        """
        if isinstance(self.forward, nn.parallel.DistributedDataParallel):
            self.forward.require_backward_grad_sync = enabled

    def update(self, progress: float, step: int) -> tuple[float, float]:
        """Run one step of every optimiser and of the EMA; return the gradient norm before clipping and the rate.

        Raises AnchorEditError, and changes nothing, if the norm is not finite.
        """
        rate = self.settings.rate(progress)
        norm = nn.utils.clip_grad_norm_(self.trainable().values(), self.settings.clip)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        if not math.isfinite(norm):
            raise AnchorEditError(
                f"the gradient norm must be finite, got {norm} in step {step}",
                f"Lower the learning rate {self.settings.lr:g} and continue from the last state with --resume",
            )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self, step)
        return norm, rate


class EMA:
    """Keep an exponential moving average of a network's trainable parameters, in another network of the same build.

    torch's AveragedModel would copy the module, which sharded and compiled modules do not survive.
    """

    def __init__(self, network: Network, decay: float):
        self.network = network
        self.decay = decay
        network.module.requires_grad_(False)

    def parameters(self, source: TrainableNetwork) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        mine = dict(self.network.module.named_parameters())
        return {name: mine[name].detach() for name in source.trainable()}

    def update(self, source: TrainableNetwork, step: int) -> None:
        """Add the parameters after step 1, 2, ...; those of FSDP2 are averaged shard by shard."""
        decay = min(self.decay, (1 + step) / (_EMA_WARM_UP + step))  # the first steps are soon forgotten
        parameters = [parameter.detach() for parameter in source.trainable().values()]
        get_ema_multi_avg_fn(decay)(list(self.parameters(source).values()), parameters, step)


class NetworkBuilder:
    """Build the networks of a stage, all distributed and compiled in the same way."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.sharded = accelerator.num_processes > 1 and config.engine.parallel == "fsdp"

    def trainable(self, init: WeightInit, optimiser: OptimiserConfig, ema: float | None = None) -> TrainableNetwork:
        """Return a network to train, or its adapters if there is a LoRA rank, with an EMA if a decay is given."""
        module = self._module(init, self.config.lora, torch.float32)
        wrapped = self.accelerator.num_processes > 1 and not self.sharded
        forward = self.accelerator.prepare_model(module) if wrapped else module
        network = TrainableNetwork(module, forward, init.name, optimiser)
        if ema is not None:
            network.ema = EMA(Network(self._module(init, self.config.lora, torch.float32), init.name), ema)
        return network

    def frozen(self, init: WeightInit) -> Network:
        """Return a network for inference alone, in the precision that it computes in."""
        half = torch.bfloat16 if self.config.engine.precision == "bfloat16" else torch.float32
        module = self._module(init, LoraConfig(), half)
        module.requires_grad_(False)
        return Network(module, init.name)

    def _module(self, init: WeightInit, lora: LoraConfig, dtype: torch.dtype) -> CausalWanTransformer:
        engine, accelerator = self.config.engine, self.accelerator
        full = None
        if accelerator.is_main_process or not self.sharded:
            full = CausalWanTransformer(init.sizes)
            full.load_state_dict(init.weights())
            full = add_adapters(full, lora, engine.seed).to(dtype)
            if lora.rank and init.adapters:
                full.load_state_dict(init.adapters, strict=False)  # they fit, see `lora_init`
        if full is None or self.sharded:
            module = shard(full, partial(_empty, init.sizes, lora, dtype), engine, accelerator.device.type)
        else:
            module = full
        module.to(accelerator.device)
        module.gradient_checkpointing = engine.checkpointing
        if engine.compile:  # block by block: one short compilation serves all of them
            for block in cast("Iterable[WanBlock]", module.blocks):
                block.ffn[1] = CompiledGelu()
                block.compile(dynamic=False)
        return module


def shard(
    full: CausalWanTransformer | None, build: Callable[[], CausalWanTransformer], engine: EngineConfig, device: str
) -> CausalWanTransformer:
    """Return a transformer sharded over all processes.

    `full` has the weights and is needed in the first process only; `build` makes an empty one in every process.
    """
    # torch warns that outputs of a block might be modified in place; none is
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    module = build()
    # Blocks are gathered in bfloat16. The other parts stay in float32, and no input is cast: times are among them.
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


def _empty(sizes: TransformerConfig, lora: LoraConfig, dtype: torch.dtype) -> CausalWanTransformer:
    """Return a transformer whose weights take no memory."""
    with torch.device("meta"):
        return add_adapters(CausalWanTransformer(sizes), lora).to(dtype)


class CompiledGelu(nn.Module):
    """Compute nn.GELU(approximate="tanh") as the sigmoid that it is: compiled for a CPU, 2.5 times faster than tanh.

    0.5 (1 + tanh u) = sigmoid 2u (https://arxiv.org/abs/1606.08415, section 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.sigmoid(_GELU_SCALE * (wide + 0.044715 * wide**3))).to(x.dtype)


def make_optimisers(module: CausalWanTransformer, settings: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all trainable parameters."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    inner = module.blocks.parameters() if settings.kind == "muon" else ()
    matrices = [parameter for parameter in inner if parameter.requires_grad and parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in trainable if id(parameter) not in chosen]
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        decay = settings.weight_decay
        optimisers.append(
            torch.optim.Muon(matrices, lr=settings.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        # with Muon, vectors and embeddings have no weight decay, as usual
        decay = 0.0 if matrices else settings.weight_decay
        optimisers.append(torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, weight_decay=decay, fused=True))
    return optimisers
