"""The page of a comparison: one HTML file that needs no other.

Filmstrips show the same sessions as every editor left them, one row each.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from anchoredit_model.filmstrip import thumbnail

from .editor_runs import Comparison
from .plots import draw_plots

_FILMS = 3  # sessions shown
_COLUMNS = 13  # images of a session: the source and up to twelve turns
_THUMB = 76  # pixels
_GAP = 3


def draw_page(comparisons: Sequence[Comparison], tables: Sequence[pd.DataFrame]) -> str:
    """Return the page as text; `tables` has the table of each comparison."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.jinja")
    return page.render(comparisons=[_section(*pair) for pair in zip(comparisons, tables, strict=True)])


def _section(comparison: Comparison, table: pd.DataFrame) -> dict[str, Any]:
    absent = [name for name in comparison.baseline.absent if all(name in e.absent for e in comparison.editors)]
    return {
        "title": comparison.title,
        "heads": list(table),
        "rows": table.to_numpy().tolist(),
        "note": comparison.layout.note,
        "absent": absent,
        "plots": draw_plots(comparison),
        "films": [_film(comparison, session) for session in range(min(_FILMS, comparison.settings["sessions"]))],
    }


def _film(comparison: Comparison, session: int) -> dict[str, Any]:
    """Return one session: the turns shown with their instructions, and a strip per editor."""
    record = comparison.baseline.runs[0].records[session]
    turns, name = record["turns"], record["session"]
    columns = min(_COLUMNS, len(turns) + 1)
    shown = sorted({round(column * len(turns) / (columns - 1)) for column in range(columns)})
    captions = [f"{turn}: {turns[turn - 1]['instruction'] or '(null edit)'}" if turn else "source" for turn in shown]
    strips, width = [], 0
    for editor in comparison.editors:
        images = editor.runs[0].images(session)
        thumbs = [thumbnail(images[turn], _THUMB) for turn in shown]
        width = thumbs[0].width
        strips.append({"editor": editor.name, "url": _data_url(_strip(thumbs))})
    return {
        "name": name if isinstance(name, str) else name + 1,
        "captions": captions,
        "width": width,
        "gap": _GAP,
        "strips": strips,
    }


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width + _GAP for image in images) - _GAP
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + _GAP
    return strip


def _data_url(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
