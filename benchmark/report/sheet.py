"""The sheet of a run: its first sessions; in the studio each image stands above the truth, with what became of it.

A green frame is a success; a red one says what failed; a grey one is of a turn that asked for what was so already.
Instructions that no font of this machine can write are given by what they ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anchoredit_model.filmstrip import BACKGROUND, caption_font, contact_sheet, thumbnail

_THUMB = 144  # pixels, the side of an image
_COLUMNS = 13  # a source and twelve turns
_FRAME = 3
_GOOD, _BAD, _MOOT = (88, 196, 110), (236, 98, 84), (150, 150, 150)
_UNKNOWN = "\U0010ffff"  # no character: what a font draws for those it lacks
_FAILURES = {"followed": "not followed", "untouched": "touched", "identity": "identity"}


def draw_sheet(strips: Sequence[Image.Image]) -> Image.Image:
    """Contact sheets one below the other."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def draw_strip(record: dict[str, Any], images: list[Tensor], truths: list[Tensor]) -> Image.Image:
    """Return the contact sheet of a studio session from its record, images and truths ([3, H, W] each)."""
    verdicts = [("", BACKGROUND), *map(_verdict, record["turns"])]
    cells = [
        _cell(thumbnail(image, _THUMB), thumbnail(truth, _THUMB), *verdict)
        for image, truth, verdict in zip(images, truths, verdicts, strict=True)
    ]
    captions = [caption(turn) for turn in record["turns"]]
    return contact_sheet(cells, captions, _THUMB, min(_COLUMNS, len(cells)))


def caption(turn: dict[str, Any]) -> str:
    """Return the instruction, if there is a font for it, else its kind and what it sets."""
    if not turn["instruction"]:
        return "(nothing)"
    font = caption_font(turn["instruction"], _THUMB // 12)
    if can_write(turn["instruction"], font):
        return turn["instruction"]
    asked = ", ".join(f"{fact}: {value}" for fact, value in turn["asked"].items())
    return f"({turn['kind']}) {asked}"


def can_write(text: str, font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font has every character of `text`, not a box for it."""
    box = bytes(font.getmask(_UNKNOWN))
    return all(bytes(font.getmask(character)) != box for character in text if not character.isspace())


def _verdict(turn: dict[str, Any]) -> tuple[str, tuple[int, int, int]]:
    """In words, and its colour."""
    failed = [words for name, words in _FAILURES.items() if not turn[name]]
    if turn["moot"]:
        return "already so", _MOOT
    return (", ".join(failed), _BAD) if failed else ("done", _GOOD)


def _cell(image: Image.Image, truth: Image.Image, words: str, colour: tuple[int, int, int]) -> Image.Image:
    """Return the verdict, the image in a frame of its colour, and the truth below."""
    font = ImageFont.load_default(_THUMB // 12)
    line = round(sum(font.getmetrics()) * 1.2)
    width = image.width + 2 * _FRAME
    cell = Image.new("RGB", (width, line + image.height + 3 * _FRAME + truth.height), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    draw.text((_FRAME, 0), words, font=font, fill=colour)
    draw.rectangle((0, line, width - 1, line + image.height + 2 * _FRAME - 1), fill=colour)
    cell.paste(image, (_FRAME, line + _FRAME))
    cell.paste(truth, (_FRAME, line + image.height + 3 * _FRAME))
    return cell
