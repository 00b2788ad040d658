"""The page of a report: one HTML file that needs nothing beside it.

Plots are drawn by matplotlib as SVG; filmstrips show the same sessions as every editor left them, one row each.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

from PIL import Image

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.filmstrip import thumbnail

from .editor_runs import Comparison, Group

Table = tuple[list[str], list[list[str]]]  # heads, rows

_SHARE, _AMOUNT, _CHANGE = (0.0, 1.0), (0.0, None), (None, None)  # what an axis spans; None: what there is
_PLOTS = {  # figure -> title, and the span of its axis
    "success": ("success", _SHARE),
    "identity": ("identity kept", _SHARE),
    "persistence": ("earlier edits that still show", _SHARE),
    "SR@k": ("all turns so far succeeded", _SHARE),
    "in question": ("the facts that the protocol is about are right", _SHARE),
    "drift: delta_e": ("colour drift where nothing should have changed (delta E)", _AMOUNT),
    "drift: sharpness": ("sharpness gained or lost there", _CHANGE),
    "drift: shift": ("shift there (pixels)", _AMOUNT),
    "change": ("what a turn changes (delta E)", _AMOUNT),
    "perceptual": ("perceptual distance from the source", _AMOUNT),
    "dino": ("likeness to the source (DINO)", _CHANGE),
    "clip": ("likeness to the source (CLIP)", _CHANGE),
    "face": ("likeness of the face to the source's", _CHANGE),
    "seconds": ("seconds per turn", _AMOUNT),
}
_NOTES = {
    "studio": "In percent of the turns that count, with 95 % intervals over sessions (bootstrap). Success: what was "
    "asked is there, the rest is untouched, and the creature is still the anchor's. SR@k: the first k turns all "
    "succeeded. In question: the facts that the protocol is about are right.",
    "photos": "Drift is measured where an image must be as it was: after a change was taken back, where nothing was "
    "asked, or outside an edit's mask; with 95 % intervals over images (bootstrap). 0 is no drift, a delta E of 2 "
    "can just be seen. An editor that changes nothing has no drift either: see what a turn changes.",
}
_FILMS = 3  # sessions shown
_COLUMNS = 13  # images of a session: the source and up to twelve turns
_THUMB = 76  # pixels
_GAP = 3
_MOST_BANDS = 4  # groups; of more the intervals would hide each other
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em; color: #1c1c1c }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } h3 { font-size: 1em; margin-bottom: .3em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
table { font-size: 13px }
th, td { padding: .3em .55em; border-bottom: 1px solid #ddd; text-align: right }
th { border-bottom-width: 2px; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left } .plots svg { max-width: 100%; height: auto }
.film { display: grid; grid-template-columns: 10em auto; gap: 2px 10px; align-items: center; font-size: 13px }
.film img { display: block; max-width: 100% } .note { color: #666; font-size: 13px }
"""


def draw_page(comparisons: Sequence[Comparison], table: Callable[[Comparison], Table]) -> str:
    """Return the page as text."""
    parts = ["<h1>Edits over many turns</h1>"]
    for comparison in comparisons:
        parts.append(f"<h2>{escape(comparison.title)}</h2>")
        parts.append(_table(*table(comparison)))
        parts.append(
            f'<p class="note">{_NOTES[comparison.settings["suite"]]}{_absent(comparison)} Bands in the plots are the '
            "same intervals.</p>"
        )
        parts.append(f'<div class="plots">{_plots(comparison)}</div>')
        parts += [_film(comparison, session) for session in range(min(_FILMS, comparison.settings["sessions"]))]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>AnchorEdit benchmark</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _absent(comparison: Comparison) -> str:
    """Return what no editor was measured by."""
    absent = [name for name in comparison.groups[0].absent if all(name in group.absent for group in comparison.groups)]
    return f" Not measured, as no weights were given: {', '.join(absent)}." if absent else ""


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plots(comparison: Comparison) -> str:
    """All plots of a comparison as one SVG."""
    try:
        import matplotlib
    except ImportError as error:
        raise AnchorEditError("the report's plots need matplotlib", "Pip install matplotlib") from error
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    plots = {
        name: plot for name, plot in _PLOTS.items() if name == "seconds" or any(map(_has(name), comparison.groups))
    }
    rows = -(-len(plots) // 2)
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "report", "axes.spines.top": False}):
        figure = Figure(figsize=(11.5, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, 2).flatten()
        colours = matplotlib.colormaps["tab10"].colors
        for axis, (name, (title, span)) in zip(axes, plots.items()):
            for number, group in enumerate(comparison.groups):
                _line(axis, group, name, colours[number % len(colours)], len(comparison.groups) <= _MOST_BANDS)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_xlim(0.7, comparison.settings["turns"] + 0.3)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.spines["right"].set_visible(False)
            axis.grid(axis="y", alpha=0.25)
            axis.set_ylim(*span)
            if span == _SHARE:
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for axis in axes[len(plots) :]:
            axis.remove()
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(4, len(comparison.groups)),
            frameon=False,
        )
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _has(name: str) -> Callable[[Group], bool]:
    return lambda group: any(group.by_turn.get(name, ()))


def _line(axis, group: Group, name: str, colour, with_band: bool) -> None:
    """One group's figure by turn, with its interval."""
    if name == "seconds":
        axis.plot(range(1, len(group.seconds_by_turn) + 1), group.seconds_by_turn, color=colour, label=group.name)
        return
    figures = group.by_turn.get(name, ())
    known = [(turn, figure) for turn, figure in enumerate(figures, start=1) if figure]
    turns = [turn for turn, _ in known]
    marker = "." if len(known) < len(figures) else None  # single turns would not show
    axis.plot(turns, [figure["mean"] for _, figure in known], color=colour, label=group.name, marker=marker)
    if with_band:
        low, high = ([figure[end] for _, figure in known] for end in ("low", "high"))
        axis.fill_between(turns, low, high, color=colour, alpha=0.12, linewidth=0)


def _film(comparison: Comparison, session: int) -> str:
    """One session as every group left it."""
    record = comparison.groups[0].runs[0].records[session]
    said = [turn["instruction"] or "(nothing)" for turn in record["turns"]]
    turns = len(said)
    columns = min(_COLUMNS, turns + 1)
    shown = sorted({round(column * turns / (columns - 1)) for column in range(columns)})
    captions = "; ".join(f"{turn}: {said[turn - 1]}" for turn in shown if turn)
    rows = []
    for group in comparison.groups:
        images = group.runs[0].images(session)
        strip = _strip([thumbnail(images[turn], _THUMB) for turn in shown])
        rows.append(f'<span>{escape(group.name)}</span><img alt="{escape(group.name)}" src="{_data_url(strip)}">')
    return (
        f'<h3>Session {_title(record)}, turns {", ".join(map(str, shown))}</h3><p class="note">{escape(captions)}</p>'
        f'<div class="wide film">{"".join(rows)}</div>'
    )


def _title(record: dict) -> str:
    """Return a session's number, from 1, or its name."""
    session = record["session"]
    return escape(session) if isinstance(session, str) else str(session + 1)


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
