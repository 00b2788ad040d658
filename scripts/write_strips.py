"""Write the README's comparison: the same twelve instructions, re-encoded every turn and with an anchored session.

    python -m scripts.write_strips                     # docs/images/twelve_turns.jpg

Both rows are the bundled model with the same seeds. Above, every turn starts a new session from the decoded image of
the turn before, as single-turn editors do; below, one session runs through.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from anchoredit_model.filmstrip import BACKGROUND, TEXT, caption_font
from anchoredit_model.images import load_image, to_pil
from anchoredit_model.pipeline import AnchorEditPipeline

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "anchoredit_model" / "assets" / "sample.png"
OUT = ROOT / "docs" / "images" / "twelve_turns.jpg"
INSTRUCTIONS = (
    "change the background to blue",
    "make it look happy",
    "add a hat",
    "write OK on the sign",
    "change the light to night",
    "change the light to day",
    "add a star in the top left corner",
    "remove the hat",
    "change the background to pink",
    "make it look sad",
    "write HI on the sign",
    "change the background to green",
)
SIDE, GAP, MARGIN = 168, 10, 24  # pixels
CAPTION_LINE, CAPTION_LETTERS = 17, 23
COLUMNS = 6
ROWS = ("Encoded again\nevery turn", "One AnchorEdit\nsession")


def re_encoded(pipeline: AnchorEditPipeline, image: Tensor, seed: int) -> list[Tensor]:
    """Return the source and all turns, each of which starts from the decoded image of the one before."""
    images = [image]
    for instruction in INSTRUCTIONS:
        memory = pipeline.turn(pipeline.start(images[-1]), instruction, seed)
        images.append(pipeline.image(memory))
    return images


def anchored(pipeline: AnchorEditPipeline, image: Tensor, seed: int) -> list[Tensor]:
    """Return the source and all turns of one session."""
    return pipeline(image, INSTRUCTIONS, seed=seed).images


def draw(rows: list[list[Tensor]]) -> Image.Image:
    """Draw both strips: the source on the left, then the turns in lines of six, the instruction below each."""
    heading, small = caption_font("", 22), caption_font("", 14)
    cell = SIDE + GAP
    line = SIDE + 2 * CAPTION_LINE + 16
    block = 2 * line + GAP
    sheet = Image.new("RGB", (2 * MARGIN + (COLUMNS + 1) * cell + GAP, MARGIN + len(rows) * (block + GAP)), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for row, (title, (source, *turns)) in enumerate(zip(ROWS, rows, strict=True)):
        top = MARGIN + row * (block + GAP)
        sheet.paste(_thumbnail(source), (MARGIN, top))
        pen.text((MARGIN, top + SIDE + 6), "source", TEXT, small)
        pen.multiline_text((MARGIN, top + line), title, TEXT, heading, spacing=6)
        for index, image in enumerate(turns):
            left = MARGIN + GAP + (1 + index % COLUMNS) * cell
            upper = top + index // COLUMNS * line
            sheet.paste(_thumbnail(image), (left, upper))
            caption = textwrap.fill(f"{index + 1}  {INSTRUCTIONS[index]}", CAPTION_LETTERS)
            pen.multiline_text((left, upper + SIDE + 6), caption, TEXT, small, spacing=3)
    return sheet


def _thumbnail(image: Tensor) -> Image.Image:
    return to_pil(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--image", type=Path, default=SAMPLE, help="source image (default: the bundled sample)")
    parser.add_argument("--out", type=Path, default=OUT, help="JPEG to write")
    arguments = parser.parse_args()
    pipeline = AnchorEditPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    source = load_image(arguments.image)
    with torch.no_grad():
        rows = [make(pipeline, source, arguments.seed) for make in (re_encoded, anchored)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows).save(arguments.out, quality=88, optimize=True)


if __name__ == "__main__":
    main()
