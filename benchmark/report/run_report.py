"""The report of one run, from the records of its sessions.

by_turn   {metric: [T] of {mean, low, high}}, null where no turn counts (metrics.py)
absent    similarity metrics that no weights were given for
cost      all that another run with the same seeds may measure differently
...       sections of the suite (layouts.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..suites.similarity import SIMILARITIES
from .layouts import LAYOUTS
from .markdown import markdown_table, mean_text
from .metrics import Record, intervals_by_turn, turn_table


def make_report(settings: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return the report of a finished run from the records of all its sessions, in order."""
    layout = LAYOUTS[settings["suite"]]
    table = turn_table(records, layout.metrics)
    return {
        "suite": settings["suite"],
        "editor": settings["editor"],
        "protocol": settings["protocol"],
        "model": settings["editor_settings"].get("model"),
        "settings": settings,
        "by_turn": intervals_by_turn(table),
        **layout.sections(records, table),
        "absent": absent_similarities(settings),
        "cost": _cost(records),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print Markdown tables."""
    layout, by_turn = LAYOUTS[report["suite"]], report["by_turn"]
    shown = {name: metric for name, metric in layout.metrics.items() if metric.in_run and any(by_turn[name])}
    rows = [[name, *(mean_text(value, shown[name].axis.format) for value in by_turn[name])] for name in shown]
    print(markdown_table(["turn", *range(1, len(by_turn[layout.main]) + 1)], rows), end="")
    layout.print_sections(report)
    if report["absent"]:
        print(f"\nnot measured, as no weights were given: {', '.join(report['absent'])}")
    print(f"{report['cost']['seconds_per_turn']:.3f} s per turn")


def absent_similarities(settings: dict[str, Any]) -> list[str]:
    """Return the similarity metrics that a run of photos had no weights for."""
    given = settings.get("similarities")
    return [] if given is None else [name for name in SIMILARITIES if name not in given]


def _cost(records: Sequence[Record]) -> dict[str, Any]:
    """Return time and memory; sessions may differ in length."""
    longest = max(len(record["turns"]) for record in records)
    seconds, cached = (
        np.array([record["cost"][name] + [np.nan] * (longest - len(record["turns"])) for record in records])
        for name in ("seconds", "cache_bytes")
    )
    peaks = [record["cost"]["peak_bytes"] for record in records if record["cost"]["peak_bytes"]]
    return {
        "seconds_per_turn": round(float(np.nanmean(seconds)), 6),
        "seconds_by_turn": [round(value, 6) for value in np.nanmedian(seconds, axis=0).tolist()],
        "cache_bytes_by_turn": np.nanmax(cached, axis=0).astype(int).tolist(),
        "peak_bytes": max(peaks, default=None),
    }
