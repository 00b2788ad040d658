"""The initial weights of a network: random, or from a file or folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchoredit_model.checkpoint.loading import load_transformer, read_checkpoint
from anchoredit_model.config import TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.transformer import CausalWanTransformer

_EMBEDDING_STD = 0.02  # of text and time embeddings, as in Wan


@dataclass(frozen=True)
class WeightInit:
    """Describe the initial weights of a network.

    sizes     as trained: `text_dim` without the columns that are always zero
    weights   makes the weights; called only in the processes that need them
    name      of the weights, for people
    adapters  those that training continues with, by peft's names; None: new ones, if any
    """

    sizes: TransformerConfig
    weights: Callable[[], dict[str, Tensor]]
    name: str = "random"
    adapters: dict[str, Tensor] | None = None


def random_init(sizes: TransformerConfig, seed: int) -> WeightInit:
    """Return Wan's own random weights."""

    def weights() -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = CausalWanTransformer(sizes)
            initialise(module)
        return module.state_dict()

    return WeightInit(sizes, weights)


def file_init(path: str, sizes: TransformerConfig) -> WeightInit:
    """Return the weights of a file or folder; raise AnchorEditError if it has other sizes.

    Columns of the text embedding beyond `sizes.text_dim` are left out: their inputs are always zero.
    """
    found = read_checkpoint(path).transformer_config  # the weights stay on disk
    for name in ("dim", "ffn_dim", "num_heads", "num_layers"):
        if getattr(found, name) != getattr(sizes, name):
            raise AnchorEditError(
                f"{name} of '{path}' must be {getattr(sizes, name)} as the config says, got {getattr(found, name)}",
                f"Give another file, or --set model.{name}={getattr(found, name)}",
            )

    def weights() -> dict[str, Tensor]:
        state = load_transformer(path)[0].state_dict()
        embedding = state["text_embedding.0.weight"]
        if embedding.shape[1] < sizes.text_dim:
            raise AnchorEditError(
                f"the text width of '{path}' must be at least the text encoder's {sizes.text_dim}, "
                f"got {embedding.shape[1]}",
                "Give the encoder that belongs to it",
            )
        return {**state, "text_embedding.0.weight": embedding[:, : sizes.text_dim].contiguous()}

    return WeightInit(sizes, weights, path)


def widen_text(state: dict[str, Tensor], text_dim: int) -> dict[str, Tensor]:
    """Return the same weights for texts whose states are zero-padded to `text_dim`."""
    weight = state["text_embedding.0.weight"]
    return {**state, "text_embedding.0.weight": F.pad(weight, (0, text_dim - weight.shape[1]))}


def initialise(module: CausalWanTransformer) -> None:
    """Set Wan's own random weights in place: Xavier for linear layers, zero for the head, so that the flow is zero."""
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
