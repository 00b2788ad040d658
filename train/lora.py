"""Low-rank adapters (https://arxiv.org/abs/2106.09685): added by peft, merged into the weights, saved for ComfyUI.

A LoRA file has ComfyUI's names and, in its metadata, `base`: the name of the weights that it belongs to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer

from .config import LoraConfig
from .weight_init import WeightInit

_PREFIX = "diffusion_model."  # of ComfyUI's names


def add_adapters(module: CausalWanTransformer, lora: LoraConfig, seed: int = 0) -> CausalWanTransformer:
    """Add adapters to the transformer in place and freeze everything else; do nothing at rank 0."""
    if not lora.rank:
        return module
    import peft

    names = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("blocks.") and name.endswith(lora.targets)
    ]
    if not names:
        raise AnchorEditError(
            f"lora.targets must name linear layers of a block, got {list(lora.targets)}",
            "Use some of q, k, v, o, ffn.0, ffn.2",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)  # type: ignore[arg-type]
        peft.inject_adapter_in_model(config, module)
    return module


def merge_adapters(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the weights with the adapters merged into them, W + alpha / rank * B A, under their plain names."""
    weights = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        if name != plain and name.endswith("weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.lora_{part}.default.weight"].float() for part in "AB")
            scaling = cast(dict[str, float], module.get_submodule(layer).scaling)
            tensor = tensor + (scaling["default"] * (up @ down)).to(tensor.dtype)
        weights[plain] = tensor
    return weights


def comfyui_lora(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return peft's adapters under the names that ComfyUI's LoRA loader reads."""
    found = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            plain = name.replace(".default.", ".")
            found[f"{_PREFIX}{plain}"] = tensor
            found[f"{_PREFIX}{plain.partition('.lora_')[0]}.alpha"] = torch.tensor(float(alpha))
    return found


def lora_init(base: WeightInit, path: Path, lora: LoraConfig) -> WeightInit:
    """Return the initial weights `base` with the adapters of a LoRA file that an earlier stage wrote.

    Raises AnchorEditError if the file cannot be read, or has adapters of another base, rank, alpha or layers.
    """
    remedy = "Use the settings of the stage before, or its merged weights as this stage's init"
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
            base_name = (file.metadata() or {}).get("base")
    except (SafetensorError, OSError) as error:
        raise AnchorEditError(f"LoRA '{path}' cannot be read ({error})", remedy) from error
    if base_name != base.name:
        raise AnchorEditError(f"the base of LoRA '{path}' must be '{base.name}', got '{base_name}'", remedy)
    alphas = {found.pop(name).item() for name in list(found) if name.endswith(".alpha")}
    state = {name.removeprefix(_PREFIX).replace(".weight", ".default.weight"): tensor for name, tensor in found.items()}
    with torch.device("meta"):
        module = add_adapters(CausalWanTransformer(base.sizes), lora)
    expected = {name: tensor.shape for name, tensor in module.state_dict().items() if ".lora_" in name}
    if alphas != {lora.alpha} or {name: tensor.shape for name, tensor in state.items()} != expected:
        raise AnchorEditError(
            f"LoRA '{path}' must have the adapters of lora.rank {lora.rank}, lora.alpha {lora.alpha:g} and "
            f"lora.targets {list(lora.targets)}, got others",
            remedy,
        )
    return replace(base, adapters=state)
