"""Puts trained parts together into one model folder, as `AnchorEditPipeline.from_pretrained` reads it.

    python -m train export --transformer runs/pretrain/transformer.safetensors --vae runs/tiny/vae \\
        --text runs/tiny/text_encoder --out anchoredit_model/tiny --dtype bfloat16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from anchoredit_model.checkpoint import load_transformer
from anchoredit_model.pipeline import AnchorEditPipeline
from anchoredit_model.text import TextEncoder
from anchoredit_model.vae import ImageVAE


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train export", description=__doc__.split("\n")[0])
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the stored weights")
    args = parser.parse_args(argv)

    transformer, edit = load_transformer(args.transformer)
    text_encoder = TextEncoder.from_pretrained(args.text, text_dim=transformer.config.text_dim)
    pipeline = AnchorEditPipeline(transformer, ImageVAE.from_pretrained(args.vae), text_encoder, edit)
    pipeline.save_pretrained(args.out, getattr(torch, args.dtype))
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
