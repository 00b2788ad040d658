"""The plots of a comparison: a metric each, by turn, with a line per editor."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .editor_runs import Comparison, EditorRuns
from .metrics import AMOUNT, SHARE

_MAX_BANDS = 4  # editors; the intervals of more would hide each other


def draw_plots(comparison: Comparison) -> str:
    """Return all plots of a comparison as one SVG."""
    titled = {name: metric for name, metric in comparison.layout.metrics.items() if metric.title}
    plots = {name: (metric.title, metric.axis) for name, metric in titled.items() if comparison.has(name)}
    plots["seconds"] = ("seconds per turn", AMOUNT)
    rows = -(-len(plots) // 2)
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "comparison", "axes.spines.top": False}):
        figure = Figure(figsize=(11.5, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, 2).flatten()
        for axis, (name, (title, span)) in zip(axes, plots.items()):
            for number, editor in enumerate(comparison.editors):
                _draw_line(axis, editor, name, f"C{number}", len(comparison.editors) <= _MAX_BANDS)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_xlim(0.7, comparison.settings["turns"] + 0.3)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.spines["right"].set_visible(False)
            axis.grid(axis="y", alpha=0.25)
            axis.set_ylim(span.low, span.high)
            if span == SHARE:
                axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axis in axes[len(plots) :]:
            axis.remove()
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(4, len(comparison.editors)),
            frameon=False,
        )
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _draw_line(axis: Axes, editor: EditorRuns, name: str, colour: str, with_band: bool) -> None:
    """Draw one editor's metric by turn, with its interval."""
    if name == "seconds":
        seconds = editor.seconds_by_turn
        axis.plot(range(1, len(seconds) + 1), seconds, color=colour, label=editor.name)
        return
    known = {turn: value for turn, value in enumerate(editor.by_turn[name], start=1) if value}
    marker = "." if len(known) < len(editor.by_turn[name]) else None  # a line through single turns would not show
    axis.plot(list(known), [value["mean"] for value in known.values()], color=colour, label=editor.name, marker=marker)
    if with_band:
        low, high = ([value[end] for value in known.values()] for end in ("low", "high"))
        axis.fill_between(list(known), low, high, color=colour, alpha=0.12, linewidth=0)
