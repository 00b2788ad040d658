"""Names of the transformer's weights: ours are Wan's own, and this maps every other spelling to them.

unwrapped            strips what ComfyUI, FSDP, DDP, torch.compile and activation checkpointing put around a name
to_wan_name          diffusers' name -> Wan's, by rule
wan_weights          all weights of a file -> the transformer's, under Wan's names
to_comfy_json        sizes in the words of Wan's original config, which ComfyUI's WanModel takes as keywords
from_comfy_json, from_diffusers_json   the way back, from either's words

Sources: https://github.com/Wan-Video/Wan2.1 (wan/modules/model.py),
https://github.com/huggingface/diffusers (models/transformers/transformer_wan.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..config import TransformerConfig
from ..errors import AnchorEditError

# None of these words is part of a Wan name, so dropping them at any position is safe.
_WRAPPERS = frozenset(
    {"model", "diffusion_model", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
# Other models in an all-in-one file as ComfyUI saves it.
_OTHER_MODELS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.")

# One rule per module, diffusers -> Wan; a rule for a bare parameter looks the same.
_OUTER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",  # the norm before cross-attention is the second in diffusers' counting
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    **{f"attn1.{theirs}": f"self_attn.{wan}" for theirs, wan in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{wan}" for theirs, wan in _ATTENTION.items()},
}
_BLOCK_KEY = re.compile(r"(blocks\.\d+\.)(.+)")

# Field of TransformerConfig -> the word for it in Wan's config and in ComfyUI; the others are the same.
_COMFY_WORDS = {"in_channels": "in_dim", "out_channels": "out_dim"}


def unwrapped(key: str) -> str:
    """Strip wrappers: `model._fsdp_wrapped_module.blocks.0._orig_mod.norm3.bias` -> `blocks.0.norm3.bias`."""
    return ".".join(word for word in key.split(".") if word not in _WRAPPERS)


def unwrapped_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Strip wrappers from all names; raises AnchorEditError, which names `source`, if two become one."""
    named: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = unwrapped(key)
        if name in named:
            raise AnchorEditError(
                f"{source} holds the weight {name} twice, once as {key}", "Keep one of the models in it"
            )
        named[name] = tensor
    return named


def has_diffusers_names(names: Iterable[str]) -> bool:
    """Tell whether weights of these names, wrapped or not, are spelled as diffusers does."""
    return any(unwrapped(name) == "condition_embedder.time_proj.weight" for name in names)


def to_wan_name(key: str) -> str | None:
    """Return Wan's name of a weight that diffusers calls `key`; None if no rule knows it."""
    block = _BLOCK_KEY.fullmatch(key)
    prefix, name, rules = (*block.groups(), _BLOCK) if block else ("", key, _OUTER)
    if name in rules:
        return prefix + rules[name]
    module, _, leaf = name.rpartition(".")
    return f"{prefix}{rules[module]}.{leaf}" if module in rules else None


def wan_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Pick the transformer's weights out of a file and give them Wan's own names; unknown names stay."""
    if any(name.startswith("model.diffusion_model.") for name in weights):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_OTHER_MODELS)}
    weights = unwrapped_weights(weights, source)
    if has_diffusers_names(weights):
        weights = {to_wan_name(name) or name: tensor for name, tensor in weights.items()}
    return weights


def to_comfy_json(config: TransformerConfig) -> dict[str, Any]:
    """Return sizes as ComfyUI (0.33 and later) takes them from a file's metadata `config` = {"transformer": {...}}."""
    sizes = {_COMFY_WORDS.get(name, name): value for name, value in config.to_json().items()}
    return {"model_type": "t2v", **sizes}


def from_comfy_json(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of TransformerConfig that Wan's config, or ComfyUI's, has, under our names."""
    names = {_COMFY_WORDS.get(name, name): name for name in TransformerConfig.__dataclass_fields__}
    return {names[word]: _frozen(value) for word, value in sizes.items() if word in names}


def from_diffusers_json(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of TransformerConfig that the config.json of a WanTransformer3DModel has, under our names."""
    found = {name: _frozen(sizes[name]) for name in TransformerConfig.__dataclass_fields__ if name in sizes}
    if "num_attention_heads" in sizes:
        found["num_heads"] = sizes["num_attention_heads"]
    if "num_attention_heads" in sizes and "attention_head_dim" in sizes:
        found["dim"] = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
