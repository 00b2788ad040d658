"""Count the bytes that a turn needs on a GPU, exactly: weights, visible K/V and working tensors.

    python -m benchmark cost memory                                  # 1.3B and 14B at 1024x1024, all dtypes
    python -m benchmark cost memory --size 14B --height 768 --width 1344 --window 3

The length of a session does not matter: the anchor frames and the window are visible. K/V on the CPU leave those of two
layers on the GPU. `working` counts the largest tensors of one block, as if all existed at once: the residual stream in
float32, the hidden layer of the feed-forward, queries, and the concatenated K/V of what is visible. GB are powers of
ten: a card of 24 GiB has 25.8.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.memory.kv_size import kv_size
from anchoredit_model.networks.transformer import CausalWanTransformer

from ..report.markdown import markdown_table

SIZES = ("1.3B", "14B")
_WEIGHTS = {"bfloat16": 2, "float8": 1}  # bytes per number of the blocks' matrices; all else has 2
_KV = {"bfloat16": 2, "float8_e4m3fn": 1}
_LAYERS_AHEAD = 2  # on the GPU when the K/V are on the CPU
_GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = MemoryPolicy()
    parser.add_argument("--size", action="append", choices=SIZES, help="repeatable (default: both)")
    parser.add_argument("--height", type=int, default=1024, help="working height in pixels (default: 1024)")
    parser.add_argument("--width", type=int, default=1024, help="working width in pixels (default: 1024)")
    parser.add_argument("--anchor-frames", type=int, default=default.anchor_frames, help="(default: %(default)s)")
    parser.add_argument("--window", type=int, default=default.window, help="(default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    policy = MemoryPolicy(args.anchor_frames, args.window)
    print(f"{args.width}x{args.height}, {policy.anchor_frames} anchor frames and a window of {policy.window}; in GB\n")
    heads = ("model", "weights in", "weights", "K/V in", "K/V device", "K/V", "working", "on the GPU")
    table = [
        [size, *(f"{cell / _GB:.2f}" if isinstance(cell, int) else cell for cell in row)]
        for size in args.size or SIZES
        for row in rows(TransformerConfig.named(size), policy, args.height, args.width)
    ]
    print(markdown_table(heads, table), end="")
    return 0


def rows(config: TransformerConfig, policy: MemoryPolicy, height: int, width: int) -> Iterator[tuple[str | int, ...]]:
    """Yield dtype and bytes of the weights; dtype, device and bytes of the K/V; working bytes; and bytes on the GPU."""
    matrices, others = _count(config)
    for weights, itemsize in _WEIGHTS.items():
        held = matrices * itemsize + 2 * others
        for dtype, bytes_each in _KV.items():
            visible = kv_size(config, policy, height, width, bytes_each).visible
            work = _working(config, policy, height, width)
            for device in ("gpu", "cpu"):
                on_gpu = visible if device == "gpu" else visible * _LAYERS_AHEAD // config.num_layers
                yield weights, held, dtype, device, visible, work, held + on_gpu + work


def _count(config: TransformerConfig) -> tuple[int, int]:
    """Count the numbers in the blocks' matrices, and in all other weights."""
    with torch.device("meta"):
        model = CausalWanTransformer(config)
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    return matrices, sum(weight.numel() for weight in model.parameters()) - matrices


def _working(config: TransformerConfig, policy: MemoryPolicy, height: int, width: int) -> int:
    """Return the bytes of one block's largest tensors, in bfloat16 except the residual stream."""
    one = kv_size(config, MemoryPolicy(0, 1), height, width, 2).per_turn // config.num_layers  # K/V
    tokens = one // (2 * 2 * config.dim)
    seen = policy.anchor_frames + policy.window + 1
    return 4 * tokens * config.dim + 2 * tokens * config.ffn_dim + 2 * tokens * config.dim + 2 * seen * one
