"""`report.json` of a run on photos (`benchmark.photo_suite`), and its tables for people.

drift_by_turn       {figure: [T] of {mean, low, high}}, over the sessions in which it is known what the image must be
change_by_turn      [T]: what an editor that follows shows at every edit, and one that does nothing never
similarity_by_turn  {measure: [T]}: to the source, of those that were given weights for
absent              the measures that were not
cost                all that another run of the same seeds may say differently
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .run_report import cost_of, print_row
from .statistics import Interval, intervals

_DRIFT_SHOWN = ("delta_e", "sharpness", "shift", "ssim_loss")  # of the figures in the report, in the table


def make_photo_report(
    settings: dict[str, Any], records: Sequence[dict[str, Any]], absent: Sequence[str]
) -> dict[str, Any]:
    """Return the report of a finished run: `records` of all its sessions, in order."""
    by_turn = {name: intervals(table) for name, table in by_photo(records).items()}
    return {
        "suite": settings["suite"],
        "editor": settings["editor"],
        "protocol": settings["protocol"],
        "model": settings["editor_settings"].get("model"),
        "settings": settings,
        "change_by_turn": by_turn["change"],
        "drift_by_turn": {name.removeprefix("drift: "): by_turn[name] for name in by_turn if name.startswith("drift")},
        "similarity_by_turn": {name: by_turn[name] for name in settings["similarities"]},
        "absent": list(absent),
        "cost": cost_of(records),
    }


def by_photo(records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every figure of N sessions of at most T turns by its name, [N, T]; NaN where it is not known."""
    longest = max(len(record["turns"]) for record in records)

    def table(value) -> np.ndarray:
        rows = [[value(turn) for turn in record["turns"]] for record in records]
        return np.array([row + [np.nan] * (longest - len(row)) for row in rows], dtype=np.float64)

    every = [turn for record in records for turn in record["turns"]]
    drifts = sorted({name for turn in every for name in turn["drift"] or ()})
    similar = list(dict.fromkeys(name for turn in every for name in turn["similar"]))
    return {
        "change": table(lambda turn: turn["change"]),
        **{f"drift: {name}": table(lambda turn, name=name: (turn["drift"] or {}).get(name, np.nan)) for name in drifts},
        **{name: table(lambda turn, name=name: turn["similar"].get(name)) for name in similar},
    }


def print_photo_report(report: dict[str, Any]) -> None:
    """Return a Markdown table by turn, and what was not measured."""
    drifts = {f"drift: {name}": report["drift_by_turn"].get(name, []) for name in _DRIFT_SHOWN}
    rows = {"change": report["change_by_turn"], **drifts, **report["similarity_by_turn"]}
    turns = range(1, len(rows["change"]) + 1)
    print_row("turn", turns)
    print("|---" * (len(turns) + 1) + "|")
    for name, figures in rows.items():
        if figures:
            print_row(name, [_amount(figure) for figure in figures])
    if report["absent"]:
        print(f"\nnot measured, as no weights were given: {', '.join(report['absent'])}")
    print(f"{report['cost']['seconds_per_turn']:.3f} s per turn")


def _amount(figure: Interval | None) -> str:
    return f"{figure['mean']:.3f}" if figure else "-"
