"""Seconds per turn and bytes held over a long session: both must stay where they are once the window is full.

    python -m benchmark cost latency --turns 16 --anchor-frames 1 --window 4

Each turn is timed over several sessions that are worked on in turns, so that a noisy machine disturbs all turns
alike; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from anchoredit_model.pipeline import TINY, AnchorEditPipeline
from studio.sessions import sample_images


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark cost latency", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--anchor-frames", type=int, default=1)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--history", choices=("stream", "refresh"), default="stream")
    parser.add_argument("--repeats", type=int, default=7, help="sessions; the median of a turn counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)

    pipeline = AnchorEditPipeline.from_pretrained(args.model, getattr(torch, args.dtype), args.device)
    image = sample_images(1, 128, 128, torch.Generator().manual_seed(0))[0]
    policy = pipeline.default_policy.with_options(
        anchor_frames=args.anchor_frames, window=args.window, history=args.history
    )
    seconds: list[list[float]] = [[] for _ in range(args.turns)]
    held: list[int] = []
    exact: list[int] = []
    for repeat in range(args.repeats + 1):
        memory = pipeline.start(image, policy)
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
                # refreshed history is read when the next turn needs it
                seen = (memory if args.history == "stream" else before).view().frames
                exact.append(len(seen) * _frame_bytes(pipeline, memory))
    rows = [
        {"turn": turn + 1, "seconds": statistics.median(times), "bytes": held[turn], "visible_bytes": exact[turn]}
        for turn, times in enumerate(seconds)
    ]
    print("turn   seconds   bytes held   visible K/V")
    for row in rows:
        print(f"{row['turn']:4d} {row['seconds']:9.4f} {row['bytes']:12,d} {row['visible_bytes']:13,d}")
    full = min(policy.anchor_frames + policy.window + 1, args.turns)
    ratio = rows[-1]["seconds"] / rows[full - 1]["seconds"]
    print(f"turn {args.turns} / turn {full}: {ratio:.3f}")
    print(f"bytes held are exactly the visible K/V at every turn: {held == exact}")
    if args.json:
        args.json.write_text(json.dumps({"turns": rows, "ratio": ratio}, indent=2) + "\n", encoding="utf-8")
    return 0 if held == exact else 1


def _frame_bytes(pipeline: AnchorEditPipeline, memory) -> int:
    """Keys and values of one frame, counted from the model's sizes: 2 * layers * tokens * width * bytes."""
    config = pipeline.backbone.transformer.config
    height, width = memory.turns[0].latent.shape[-2:]
    tokens = height // config.patch_size[1] * (width // config.patch_size[2])
    return 2 * config.num_layers * tokens * config.dim * next(pipeline.backbone.transformer.parameters()).element_size()
