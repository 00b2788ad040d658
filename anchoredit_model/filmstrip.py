"""The contact sheet of a session: the source, then every turn with its instruction below."""

from __future__ import annotations

import re
from statistics import median
from typing import cast

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import AnchorEditError
from .images import to_pil

# Neutral greys, dark as an image editor's window, so that the sheet does not tint how its images look.
BACKGROUND, FRAME, LABEL, TEXT = (38, 38, 38), (78, 78, 78), (150, 150, 150), (226, 226, 226)
CAPTION_LINES = 3
# Sides of a thumbnail, in units of `thumb`: images more elongated than 5:1 are shown smaller, not cropped.
LONGEST_SIDE, NARROWEST_CELL = 2.25, 0.75
ROW_LENGTH = 6  # square thumbnails in a row; fewer wide ones, more tall ones

# Pillow looks them up by name in the system's font folders, for captions in other than Latin letters.
WORLD_FONTS = (
    "NotoSansCJK-Regular.ttc",  # Linux
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",  # Windows: Microsoft YaHei
    "simhei.ttf",
    "simsun.ttc",
    "PingFang.ttc",  # macOS
    "Hiragino Sans GB.ttc",
    "STHeiti Medium.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",  # no Chinese, but Greek and Cyrillic
)
# Pillow's own font has Latin letters and common punctuation only.
BEYOND_LATIN = re.compile(r"[^\u0000-\u024f\u2000-\u206f\u20ac\u2122]")
# A line may break between words and after every Chinese or Japanese character, but not before its punctuation.
CJK = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
PIECES = re.compile(rf"[{CJK}][\u3001\u3002\uff01\uff09\uff0c\uff1a\uff1b\uff1f]*|[^\s{CJK}]+|\s+")


def filmstrip(
    images: list[Tensor],
    captions: list[str],
    thumb: int = 256,
    columns: int | None = None,
    labels: list[str] | None = None,
) -> Image.Image:
    """Draw a contact sheet.

    images    [3, H, W], 0..1, of any size, the source first
    captions  the instructions, one per turn, so one fewer than `images`
    thumb     side of a square thumbnail in pixels; others have the same area
    columns   images in a row (default: about 6 square ones, in evenly filled rows)
    labels    above the captions, one per image (default: "source", "turn 1", ...)

    Chinese captions need a Chinese font on the system (most Linux servers have none: install Noto Sans CJK), else
    they show as boxes. Raises AnchorEditError if the numbers of images and captions or the sizes do not fit.
    """
    thumbnails = _thumbnails([to_pil(image) for image in images], thumb) if images else []
    return contact_sheet(thumbnails, captions, thumb, columns, labels)


def thumbnail(image: Tensor, thumb: int = 256) -> Image.Image:
    """Scale an image [3, H, W], 0..1, as `filmstrip` shows it among others of its size."""
    return _thumbnails([to_pil(image)], thumb)[0]


def contact_sheet(
    thumbnails: list[Image.Image],
    captions: list[str],
    thumb: int = 256,
    columns: int | None = None,
    labels: list[str] | None = None,
) -> Image.Image:
    """Draw the sheet of `filmstrip` from thumbnails, which are all that a long session needs to keep."""
    if not thumbnails or len(captions) != len(thumbnails) - 1:
        raise AnchorEditError(
            f"a filmstrip must have one caption fewer than images, got {len(thumbnails)} images and {len(captions)} "
            "captions",
            "Give the source and then one image and one caption per turn",
        )
    if thumb < 48 or (columns is not None and columns < 1):
        raise AnchorEditError(
            f"a filmstrip must have thumb 48 and columns 1 or more, got thumb {thumb} and columns {columns}",
            "Use 48 pixels and 1 column or more",
        )
    labels = labels or ["source", *(f"turn {number}" for number in range(1, len(thumbnails)))]
    label_font = default_font(max(10, round(thumb / 18)))
    text_font = caption_font("".join(captions), max(11, round(thumb / 15)))
    line_height = round(sum(text_font.getmetrics()) * 1.15)
    label_height = round(sum(label_font.getmetrics()) * 1.35)

    gap, row_gap = round(thumb / 12), round(thumb / 9)
    cell_width = max(round(thumb * NARROWEST_CELL), max(image.width for image in thumbnails))
    image_height = max(image.height for image in thumbnails)
    texts = [[]] + [_wrap(caption, text_font, cell_width) for caption in captions]
    columns = min(columns or _columns(len(thumbnails), cell_width / thumb), len(thumbnails))
    rows = [range(first, min(first + columns, len(thumbnails))) for first in range(0, len(thumbnails), columns)]

    label_gap = round(gap / 3)
    # a row is as high as its longest caption needs
    row_heights = [
        image_height + label_gap + label_height + line_height * max(len(texts[i]) for i in row) for row in rows
    ]
    size = (columns * (cell_width + gap) + gap, sum(row_heights) + row_gap * (len(rows) - 1) + 2 * gap)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, i in enumerate(row):
            left = gap + column * (cell_width + gap)
            image = thumbnails[i]
            # left and bottom aligned, so that text and image share an edge and the label is near its image
            y = top + image_height - image.height
            draw.rectangle((left - 1, y - 1, left + image.width, y + image.height), outline=FRAME)
            sheet.paste(image, (left, y))
            y = top + image_height + label_gap
            draw.text((left, y), labels[i], font=label_font, fill=LABEL)
            for line, words in enumerate(texts[i]):
                draw.text((left, y + label_height + line * line_height), words, font=text_font, fill=TEXT)
        top += row_height + row_gap
    return sheet


def _thumbnails(images: list[Image.Image], thumb: int) -> list[Image.Image]:
    """Scale images to one height, at which the median aspect ratio covers thumb x thumb pixels."""
    aspect = median(image.width / image.height for image in images)
    longest = round(thumb * LONGEST_SIDE)
    height = min(longest, max(round(thumb / LONGEST_SIDE), round(thumb / aspect**0.5)))
    thumbnails = []
    for image in images:
        scale = min(height / image.height, longest / image.width)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        thumbnails.append(image.resize(size, Image.Resampling.LANCZOS))
    return thumbnails


def _columns(count: int, cell_width: float) -> int:
    """Return the number of columns that fills rows evenly; `cell_width` in units of `thumb`."""
    most = max(2, round(ROW_LENGTH / cell_width))
    rows = -(-count // most)
    return -(-count // rows)


def caption_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font for `text`: Pillow's own, or for other scripts the first of WORLD_FONTS on this system."""
    if BEYOND_LATIN.search(text):
        for name in WORLD_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return default_font(size)  # draws boxes for characters that it lacks


def default_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which for a given size is always a FreeType font."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break `text` into at most CAPTION_LINES lines of at most `width` pixels; an ellipsis marks a cut."""
    lines = [""]
    for piece in PIECES.findall(text.strip()):
        piece = " " if piece.isspace() else piece
        if font.getlength((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
            continue
        if lines[-1] and not piece.isspace():
            lines.append("")
        for character in piece.strip():  # a word may be longer than a line
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > CAPTION_LINES:
        last = lines[CAPTION_LINES - 1]
        while last and font.getlength(last.rstrip() + "…") > width:
            last = last[:-1]
        lines[CAPTION_LINES - 1 :] = [last.rstrip(" ,.;:\uff0c\u3002") + "…"]
    return lines
