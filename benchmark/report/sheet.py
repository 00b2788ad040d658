"""The contact sheet of a run: its first sessions, with the correct image below each where it is known.

A green frame is a success; a red one names what failed; a grey one is a turn that is not applicable. Instructions that
no font of this machine can write are shown as what they ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anchoredit_model.filmstrip import BACKGROUND, caption_font, contact_sheet, default_font, thumbnail

_THUMB, _PHOTO_THUMB = 144, 192  # pixels, the side of an image
_COLUMNS, _PHOTO_COLUMNS = 13, 7
_FRAME = 3
_SUCCESS, _FAILURE, _NOT_APPLICABLE = (88, 196, 110), (236, 98, 84), (150, 150, 150)
_UNKNOWN = "\U0010ffff"  # no character: drawn as what a font has for those it lacks
_FAILURES = {"followed": "not followed", "preservation": "not preserved", "identity": "identity"}


def draw_sheet(strips: Sequence[Image.Image]) -> Image.Image:
    """Stack contact sheets."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def draw_strip(
    record: Mapping[str, Any], images: Sequence[Tensor], oracle_images: Sequence[Tensor] | None
) -> Image.Image:
    """Return the contact sheet of a session from its record and images ([3, H, W], the source first)."""
    captions = [caption(turn) for turn in record["turns"]]
    if oracle_images is None:
        thumbs = [thumbnail(image, _PHOTO_THUMB) for image in images]
        return contact_sheet(thumbs, captions, _PHOTO_THUMB, _PHOTO_COLUMNS)
    verdicts = [("", BACKGROUND), *map(_verdict, record["turns"])]
    cells = [
        _cell(thumbnail(image, _THUMB), thumbnail(correct, _THUMB), *verdict)
        for image, correct, verdict in zip(images, oracle_images, verdicts, strict=True)
    ]
    return contact_sheet(cells, captions, _THUMB, _COLUMNS)


def caption(turn: Mapping[str, Any]) -> str:
    """Return the instruction, or its kind and what it sets if there is no font for it."""
    text = turn["instruction"] or "(null edit)"
    if "asked" not in turn or can_write(text, caption_font(text, _THUMB // 12)):
        return text
    asked = ", ".join(f"{attribute}: {value}" for attribute, value in turn["asked"].items())
    return f"({turn['kind']}) {asked}"


def can_write(text: str, font: ImageFont.FreeTypeFont) -> bool:
    """Return whether the font has every character of a text, not a box for it."""
    box = _drawn(_UNKNOWN, font)
    return all(_drawn(character, font) != box for character in text if not character.isspace())


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> bytes:
    mask = Image.new("L", (2 * int(font.size), 2 * int(font.size)))
    ImageDraw.Draw(mask).text((0, 0), character, font=font, fill=255)
    return mask.tobytes()


def _verdict(turn: Mapping[str, Any]) -> tuple[str, tuple[int, int, int]]:
    """Return the verdict in words, and its colour."""
    failed = [words for name, words in _FAILURES.items() if not turn[name]]
    if turn["not_applicable"]:
        return "not applicable", _NOT_APPLICABLE
    return (", ".join(failed), _FAILURE) if failed else ("success", _SUCCESS)


def _cell(image: Image.Image, correct: Image.Image, words: str, colour: tuple[int, int, int]) -> Image.Image:
    """Return the verdict, the image in a frame of its colour, and the correct image below."""
    font = default_font(_THUMB // 12)
    line = round(sum(font.getmetrics()) * 1.2)
    width = image.width + 2 * _FRAME
    cell = Image.new("RGB", (width, line + image.height + 3 * _FRAME + correct.height), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    draw.text((_FRAME, 0), words, font=font, fill=colour)
    draw.rectangle((0, line, width - 1, line + image.height + 2 * _FRAME - 1), fill=colour)
    cell.paste(image, (_FRAME, line + _FRAME))
    cell.paste(correct, (_FRAME, line + image.height + 3 * _FRAME))
    return cell
