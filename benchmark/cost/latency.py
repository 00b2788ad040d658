"""Time the turns of long sessions, and count the bytes held: both must stay constant once the window is full.

    python -m benchmark cost latency --turns 16 --anchor-frames 1 --window 4

Each turn is timed in several sessions, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from anchoredit_model.config import HISTORIES, TransformerConfig
from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from studio.sessions import sample_images

from ..run_folder import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=TINY, metavar="PATH", help="(default: the bundled model)")
    parser.add_argument("--turns", type=int, default=16, help="(default: 16)")
    parser.add_argument("--anchor-frames", type=int, default=1, help="(default: 1)")
    parser.add_argument("--window", type=int, default=4, help="(default: 4)")
    parser.add_argument("--history", choices=HISTORIES, default="stream", help="(default: stream)")
    parser.add_argument("--repeats", type=int, default=7, help="number of sessions (default: 7)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")


def main(args: argparse.Namespace) -> int:
    dtype = getattr(torch, args.dtype)
    pipeline = AnchorEditPipeline.from_pretrained(args.model, dtype, args.device)
    image = sample_images(1, 128, 128, torch.Generator().manual_seed(0))[0]
    policy = pipeline.default_policy.with_options(
        anchor_frames=args.anchor_frames, window=args.window, history=args.history
    )
    seconds: list[list[float]] = [[] for _ in range(args.turns)]
    held: list[int] = []
    visible: list[int] = []
    for repeat in range(args.repeats + 1):
        memory = pipeline.start(image, policy)
        frame_bytes = _frame_bytes(pipeline.backbone.config, memory.turns[0].latent, dtype)
        for turn in range(args.turns):
            before, began = memory, time.perf_counter()
            memory = pipeline.turn(memory, "make it blue", seed=repeat)
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - began
            if repeat:  # the first session warms up
                seconds[turn].append(elapsed)
            else:
                held.append(pipeline.store.nbytes)
                # refreshed history is encoded when the next turn needs it
                seen = (memory if args.history == "stream" else before).view().frames
                visible.append(len(seen) * frame_bytes)
    rows = [
        {"turn": turn + 1, "seconds": statistics.median(times), "bytes": held[turn], "visible_bytes": visible[turn]}
        for turn, times in enumerate(seconds)
    ]
    print("turn   seconds   bytes held   visible K/V")
    for row in rows:
        print(f"{row['turn']:4d} {row['seconds']:9.4f} {row['bytes']:12,d} {row['visible_bytes']:13,d}")
    full = min(policy.anchor_frames + policy.window + 1, args.turns)
    ratio = rows[-1]["seconds"] / rows[full - 1]["seconds"]
    print(f"turn {args.turns} / turn {full}: {ratio:.3f}")
    print(f"bytes held are exactly the visible K/V at every turn: {held == visible}")
    if args.out:
        write_json({"turns": rows, "ratio": ratio}, args.out)
    return 0 if held == visible else 1


def _frame_bytes(config: TransformerConfig, latent: Tensor, dtype: torch.dtype) -> int:
    """Return the bytes of one frame's K/V, from the model's sizes: 2 * layers * tokens * width * bytes of a number."""
    height, width = latent.shape[-2:]
    tokens = height // config.patch_size[1] * (width // config.patch_size[2])
    return 2 * config.num_layers * tokens * config.dim * dtype.itemsize
