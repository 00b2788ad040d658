"""The metrics of both suites, one entry each: how a record gives a value per turn, and where it is shown.

A record is what a suite keeps of a session (suites/session_runner.py, suites/photos.py). Every metric is in
report.json, comparison.json and comparison.csv; the flags of an entry say where else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anchoredit_model.drift.metrics import Drift

from ..suites.session_runner import is_success
from ..suites.similarity import SIMILARITIES
from .statistics import Interval, intervals, succeeded_so_far

Record = Mapping[str, Any]
VERDICTS = ("success", "followed", "preservation", "identity")
PROBE_ACCURACY = "probe accuracy"


class Axis(NamedTuple):
    """The range of a metric's plot, None being that of the data, and its format."""

    low: float | None
    high: float | None
    format: str


SHARE, AMOUNT, CHANGE = Axis(0, 1, ".1%"), Axis(0, None, ".3f"), Axis(None, None, ".3f")


@dataclass(frozen=True)
class Metric:
    """Measure every turn of a record.

    by_turn    a value per turn, NaN where the turn does not count
    title      of its plot; without one it is not plotted
    in_run     whether the tables of a run show it
    in_last    whether the tables of a comparison show it, at the last turn
    """

    by_turn: Callable[[Record], Sequence[float]]
    axis: Axis
    title: str = ""
    in_run: bool = True
    in_last: bool = False


def turn_table(records: Sequence[Record], metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """Return a column per metric, and a row per session and turn, which are the index; both as in the records."""
    tables = [
        pd.DataFrame(
            {name: np.asarray(metric.by_turn(record), dtype=np.float64) for name, metric in metrics.items()},
            index=pd.RangeIndex(1, len(record["turns"]) + 1, name="turn"),
        )
        for record in records
    ]
    return pd.concat(tables, keys=range(len(records)), names=["session"])


def intervals_by_turn(table: pd.DataFrame) -> dict[str, list[Interval | None]]:
    """Return intervals over sessions, by metric and turn. A table may hold several runs of each session."""
    groups = table.groupby(["session", "turn"])
    totals, counts = groups.sum(), groups.count()
    return {
        str(name): intervals(totals[name].unstack(fill_value=0), counts[name].unstack(fill_value=0)) for name in table
    }


def probe_is_right(record: Record, probe: Mapping[str, Any]) -> float:
    """Return 1 if the attributes of a probe are right, else 0.

    NaN where a no-op would be right (a turn that is not applicable), or where an earlier edit must last that was never
    done.
    """
    attributes, turn = set(probe["attributes"]), record["turns"][probe["turn"] - 1]
    if attributes & set(turn["asked"]):
        counts = not turn["not_applicable"]
    else:
        edits = [earlier for earlier in record["turns"][: probe["turn"] - 1] if attributes & set(earlier["asked"])]
        counts = not edits or not attributes & set(edits[-1]["wrong"])
    return float(not attributes & set(turn["wrong"])) if counts else np.nan


def _verdict(name: str) -> Callable[[Record], list[float]]:
    def value(turn: Mapping[str, Any]) -> bool:
        return is_success(turn) if name == "success" else turn[name]

    return lambda record: [np.nan if turn["not_applicable"] else float(value(turn)) for turn in record["turns"]]


def _value(name: str, of: str | None = None) -> Callable[[Record], list[float]]:
    """Read turn[name], or turn[of][name], which may be missing or null."""

    def value(turn: Mapping[str, Any]) -> float:
        found = ((turn[of] or {}) if of else turn).get(name)
        return np.nan if found is None else found

    return lambda record: [value(turn) for turn in record["turns"]]


def _success_so_far(record: Record) -> Sequence[float]:
    return succeeded_so_far(np.array([is_success(turn) for turn in record["turns"]])).astype(float).tolist()


def _persistence(record: Record) -> list[float]:
    """Return the share of attributes that are right, of those set by earlier turns and not by this one."""
    earlier: set[str] = set()
    shares = []
    for turn in record["turns"]:
        kept = earlier - set(turn["asked"])
        shares.append(len(kept - set(turn["wrong"])) / len(kept) if kept else np.nan)
        earlier |= set(turn["asked"])
    return shares


def _probe_accuracy(record: Record) -> list[float]:
    probes = {probe["turn"]: probe for probe in record["probes"]}
    turns = range(1, len(record["turns"]) + 1)
    return [probe_is_right(record, probes[turn]) if turn in probes else np.nan for turn in turns]


def _drift(shown: Mapping[str, tuple[Axis, str]], in_last: Sequence[str] = ()) -> dict[str, Metric]:
    """Return a metric for each field of `Drift`, and for the length of its shift."""
    names = [*(field.name for field in fields(Drift)), "shift"]
    return {
        f"drift: {name}": Metric(
            _value(name, "drift"), *shown.get(name, (CHANGE, "")), in_run=name in shown, in_last=name in in_last
        )
        for name in names
    }


_SHOWN_DRIFT = {
    "delta_e": (AMOUNT, "colour drift where nothing should change (delta E)"),
    "sharpness": (CHANGE, "change of sharpness there (log2)"),
    "shift": (AMOUNT, "shift there (pixels)"),
}
STUDIO_METRICS: Mapping[str, Metric] = {
    "success": Metric(_verdict("success"), SHARE, "success"),
    "followed": Metric(_verdict("followed"), SHARE),
    "preservation": Metric(_verdict("preservation"), SHARE, in_last=True),
    "identity": Metric(_verdict("identity"), SHARE, "identity", in_last=True),
    "persistence": Metric(_persistence, SHARE, "persistence: earlier edits that still show", in_last=True),
    "SR@k": Metric(_success_so_far, SHARE, "SR@k: the first k turns all succeeded"),
    PROBE_ACCURACY: Metric(_probe_accuracy, SHARE, "probe accuracy", in_last=True),
    "damage": Metric(_value("damage"), AMOUNT),
    "likeness": Metric(_value("likeness"), AMOUNT),
    **_drift(_SHOWN_DRIFT),
}
PHOTO_METRICS: Mapping[str, Metric] = {
    "change": Metric(_value("change"), AMOUNT, "change per turn (delta E)"),
    **_drift({**_SHOWN_DRIFT, "ssim_loss": (AMOUNT, "")}, in_last=("sharpness", "shift", "ssim_loss")),
    **{
        name: Metric(_value(name, "similarity"), CHANGE, kind.title, in_last=True)
        for name, kind in SIMILARITIES.items()
    },
}
