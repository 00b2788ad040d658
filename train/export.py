"""Puts trained parts together into one model folder, as `AnchorEditPipeline.from_pretrained` reads it.

    python -m train export --transformer runs/pretrain/transformer.safetensors --vae runs/tiny/vae \\
        --text runs/tiny/text_encoder --out anchoredit_model/tiny --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.checkpoint import load_transformer
from anchoredit_model.pipeline import AnchorEditPipeline
from anchoredit_model.text import TextEncoder
from anchoredit_model.vae import ImageVAE
from train.studio import held_out_generator, sample_images

PREVIEW_PICTURES = 16
PREVIEW_SIZE = 128  # pixels


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
    write_preview(args.out / "vae", pipeline.vae)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def write_preview(folder: Path, vae: ImageVAE) -> None:
    """Beside the VAE, the colours in which ComfyUI shows its unfinished latents, fitted to drawings of the studio."""
    pictures = sample_images(PREVIEW_PICTURES, PREVIEW_SIZE, PREVIEW_SIZE, held_out_generator(0))
    with torch.no_grad():
        factors, offset = latent_colours(vae.encode(pictures), pictures, vae.spatial_factor)
    text = json.dumps({"factors": factors, "offset": offset}, indent=1) + "\n"
    (folder / "preview.json").write_text(text, encoding="utf-8")


def latent_colours(latents: Tensor, pictures: Tensor, factor: int) -> tuple[list[list[float]], list[float]]:
    """The linear map latent -> colour in -1..1 with the least squared error: factors [C][3] and offset [3].

    latents [N, C, h, w], pictures [N, 3, factor * h, factor * w] in 0..1.
    """
    colours = F.avg_pool2d(pictures * 2 - 1, factor).movedim(1, -1).reshape(-1, 3).double()
    cells = latents.movedim(1, -1).flatten(0, 2).double()
    solved = torch.linalg.lstsq(F.pad(cells, (0, 1), value=1.0), colours).solution  # [C + 1, 3]
    rounded = [[round(number, 4) for number in row] for row in solved.tolist()]
    return rounded[:-1], rounded[-1]


if __name__ == "__main__":
    main()
