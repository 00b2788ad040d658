"""Export the finished model: a folder for the pipeline, and the transformer as one file for ComfyUI.

    python -m train export --config tiny --out runs/tiny

writes `model/`, which `AnchorEditPipeline.from_pretrained` loads, and `anchoredit.safetensors`, the transformer with
Wan's keys, which the nodes, the pipeline and ComfyUI's own loader read; its metadata has the edit config and the sizes.
A LoRA run also has `lora.safetensors`, the adapters of all its stages for the initial weights of the first one (`base`
in its metadata).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anchoredit_model.checkpoint.loading import load_transformer
from anchoredit_model.checkpoint.saving import save_checkpoint
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.backbone import TransformerBackbone
from anchoredit_model.networks.text_encoder import TextEncoder
from anchoredit_model.networks.transformer import CausalWanTransformer
from anchoredit_model.networks.vae import ImageVAE
from anchoredit_model.pipeline import AnchorEditPipeline
from studio.sessions import held_out_generator, sample_images

from .config import Config
from .curriculum import Curriculum
from .engine import LORA

FOLDER, FILE = "model", "anchoredit.safetensors"
PREVIEW_IMAGES = 16
PREVIEW_SIZE = 128  # pixels


def run(config: Config, out: Path) -> None:
    """Export the checkpoint of the last stage, or the weights that the config names."""
    curriculum = Curriculum(config, out)
    path = Path(config.export.transformer) if config.export.transformer else curriculum.last_checkpoint()
    dtype = getattr(torch, config.export.dtype)
    transformer, edit = load_transformer(path)
    average_weights(transformer, config.export.average)
    edit = replace(edit, sampler=config.export.sampler or edit.sampler)
    save_checkpoint(out / FILE, transformer, transformer.config, edit, dtype)
    if (path.parent / LORA).is_file():
        shutil.copyfile(path.parent / LORA, out / LORA)
    encoder = TextEncoder.from_pretrained(curriculum.text_folder(), text_dim=transformer.config.text_dim)
    vae = ImageVAE.from_pretrained(curriculum.vae_folder())
    AnchorEditPipeline(TransformerBackbone(transformer, edit), vae, encoder).save_pretrained(out / FOLDER, dtype)
    write_preview(out / FOLDER / "vae", vae)
    size = sum(file.stat().st_size for file in (out / FOLDER).rglob("*") if file.is_file())
    print(f"{path} -> {out / FILE}, {out / FOLDER} ({size / 1e6:.1f} MB)")


@torch.no_grad()
def average_weights(transformer: CausalWanTransformer, others: Sequence[str]) -> None:
    """Replace the weights of a transformer by the mean of them and those of others.

    Raises AnchorEditError if one has other sizes or cannot be read.
    """
    mean = {name: weight.double() for name, weight in transformer.state_dict().items()}
    for path in others:
        other, _ = load_transformer(path)
        if other.config != transformer.config:
            raise AnchorEditError(
                f"'{path}' must have the sizes of the transformer to export, {transformer.config}, got {other.config}",
                "Remove it from export.average",
            )
        for name, weight in other.state_dict().items():
            mean[name] += weight
    transformer.load_state_dict({name: weight / (1 + len(others)) for name, weight in mean.items()})


def write_preview(folder: Path, vae: ImageVAE) -> None:
    """Write preview.json into the folder of the VAE: the colours of ComfyUI's previews of latents, fitted to images."""
    images = sample_images(PREVIEW_IMAGES, PREVIEW_SIZE, PREVIEW_SIZE, held_out_generator(0))
    with torch.no_grad():
        factors, offset = latent_colours(vae.encode(images), images, vae.spatial_factor)
    text = json.dumps({"factors": factors, "offset": offset}, indent=1) + "\n"
    (folder / "preview.json").write_text(text, encoding="utf-8")


def latent_colours(latents: Tensor, images: Tensor, factor: int) -> tuple[list[list[float]], list[float]]:
    """Fit the linear map from latents to colours in -1..1 by least squares: factors [C][3] and offset [3].

    latents [N, C, h, w], images [N, 3, factor * h, factor * w] in 0..1.
    """
    colours = F.avg_pool2d(images * 2 - 1, factor).movedim(1, -1).reshape(-1, 3).double()
    pixels = latents.movedim(1, -1).flatten(0, 2).double()
    solved = torch.linalg.lstsq(F.pad(pixels, (0, 1), value=1.0), colours).solution  # [C + 1, 3]
    rounded = [[round(number, 4) for number in row] for row in solved.tolist()]
    return rounded[:-1], rounded[-1]
