"""What a card has to hold for a turn, by exact count: weights, remembered keys and values, and what a turn works in.

    python -m benchmark cost memory                                  # 1.3B and 14B at 1024x1024, all number formats
    python -m benchmark cost memory --size 14B --height 768 --width 1344 --window 3

The number of turns a session has does not matter: what is visible is the anchor frames and the window. Keys and values
in main memory (`place` ram) leave two layers of them on the card. `working` counts the largest tensors of one block, as
if all were there at once: the residual stream in float32, the widened feed-forward, queries, and the keys and values of
what is visible, joined. GB are powers of ten: a card of 24 GiB has 25.8.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from anchoredit_model.config import MemoryPolicy, TransformerConfig
from anchoredit_model.memory.kv_size import kv_size
from anchoredit_model.networks.transformer import CausalWanTransformer

SIZES = ("1.3B", "14B")
_WEIGHTS = {"bfloat16": 2, "float8": 1}  # bytes per number of the blocks' matrices; all else has 2
_KEYS = {"bfloat16": 2, "float8_e4m3fn": 1}
_LAYERS_AHEAD = 2  # on the card when keys and values are in main memory
_GB = 1e9


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    policy = MemoryPolicy(args.anchor_frames, args.window)
    print(f"{args.width}x{args.height}, {policy.anchor_frames} anchor frames and a window of {policy.window}; in GB\n")
    heads = ("model", "weights in", "weights", "K/V in", "K/V place", "K/V", "working", "on the card")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for size in args.size or SIZES:
        for row in rows(TransformerConfig.named(size), policy, args.height, args.width):
            cells = [f"{cell / _GB:.2f}" if isinstance(cell, int) else cell for cell in row]
            print(f"| {' | '.join([size, *cells])} |")
    return 0


def rows(config: TransformerConfig, policy: MemoryPolicy, height: int, width: int) -> Iterator[tuple[str | int, ...]]:
    """Format and bytes of the weights; format, place and bytes of keys and values; bytes to work in, and the sum."""
    matrices, others = _count(config)
    for weights, itemsize in _WEIGHTS.items():
        held = matrices * itemsize + 2 * others
        for dtype, bytes_each in _KEYS.items():
            visible = kv_size(config, policy, height, width, bytes_each).visible
            work = _working(config, policy, height, width)
            for place in ("vram", "ram"):
                here = visible if place == "vram" else visible * _LAYERS_AHEAD // config.num_layers
                yield weights, held, dtype, place, visible, work, held + here + work


def _count(config: TransformerConfig) -> tuple[int, int]:
    """Numbers in the blocks' matrices, and in everything else."""
    with torch.device("meta"):
        model = CausalWanTransformer(config)
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    return matrices, sum(weight.numel() for weight in model.parameters()) - matrices


def _working(config: TransformerConfig, policy: MemoryPolicy, height: int, width: int) -> int:
    """Bytes of one block's largest tensors, in bfloat16 but for the residual stream."""
    one = kv_size(config, MemoryPolicy(0, 1), height, width, 2).per_turn // config.num_layers  # keys and values
    tokens = one // (2 * 2 * config.dim)
    seen = policy.anchor_frames + policy.window + 1
    return 4 * tokens * config.dim + 2 * tokens * config.ffn_dim + 2 * tokens * config.dim + 2 * seen * one


def _parser() -> argparse.ArgumentParser:
    default = MemoryPolicy()
    parser = argparse.ArgumentParser(
        prog="python -m benchmark cost memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", action="append", choices=SIZES, help="may be repeated (default: both)")
    parser.add_argument("--height", type=int, default=1024, help="of the image as it is worked on, pixels")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--anchor-frames", type=int, default=default.anchor_frames)
    parser.add_argument("--window", type=int, default=default.window)
    return parser
