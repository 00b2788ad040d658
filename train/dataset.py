"""Studio sessions rendered once and kept on disk, for training on machines where drawing is the bottleneck.

    python -m train dataset --out runs/data --chunks 24 --layout star --seed 1

writes `star_00000.safetensors`, ...: `pictures` uint8 [N, T + 1, 3, H, W] and, as JSON in the metadata, `texts`
[N][T] and `kinds` [N][T]. In layout `star` every edit starts from the source picture, in `chain` from the
picture before. Finished chunks are kept, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anchoredit_model.files import whole_file

from .render import compiled_layers, render
from .studio import sample_sessions

_BATCH = 64


def load_chunk(path: Path) -> tuple[torch.Tensor, list[list[str]], list[list[str]]]:
    """Pictures uint8 [N, T + 1, 3, H, W], texts [N][T] and kinds [N][T] of one chunk."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        return file.get_tensor("pictures"), json.loads(metadata["texts"]), json.loads(metadata["kinds"])


def render_chunk(count: int, turns: int, size: int, layout: str, seed: int, layers=None):
    """One chunk of `count` sessions, as `load_chunk` returns it."""
    generator = torch.Generator().manual_seed(seed)
    sessions = sample_sessions(count, turns, generator, star=layout == "star")
    pictures = torch.empty(count, turns + 1, 3, size, size, dtype=torch.uint8)
    for turn, scenes in enumerate(sessions.scenes):
        for start in range(0, count, _BATCH):
            part = render(scenes[start : start + _BATCH], size, size, layers)
            pictures[start : start + _BATCH, turn] = (part * 255).round().byte()
    texts = [list(row) for row in zip(*sessions.texts, strict=True)]
    kinds = [[edit.kind for edit in row] for row in zip(*sessions.edits, strict=True)]
    return pictures, texts, kinds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train dataset", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--sessions", type=int, default=1024, help="per chunk, a multiple of 64")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--layout", choices=("star", "chain"), default="star")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    layers = compiled_layers()
    for chunk in range(args.chunks):
        path = args.out / f"{args.layout}_{chunk:05d}.safetensors"
        if path.exists():
            continue
        seed = args.seed * 1_000_003 + chunk
        pictures, texts, kinds = render_chunk(args.sessions, args.turns, args.size, args.layout, seed, layers)
        with whole_file(path, "sessions") as unfinished:
            save_file({"pictures": pictures}, unfinished, {"texts": json.dumps(texts), "kinds": json.dumps(kinds)})
        print(f"{path} {len(pictures)} sessions", flush=True)


if __name__ == "__main__":
    main()
