"""What a run of the studio reports besides its metrics.

not_applicable_by_turn   [T]: the number of sessions in which the turn is not applicable
first_failure            at which turn sessions fail first, and how many never fail
overall                  verdicts over all turns; `success_of_edits` without null edits
by_kind                  verdicts by kind of edit: at turn 1, where nothing has gone wrong yet, and over all turns
probes                   success of the probed turns, and accuracy over the sessions in which the probe says something
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from studio.instructions import KINDS

from ..suites.session_runner import is_success
from .markdown import interval_text, markdown_table
from .metrics import VERDICTS, Record, probe_is_right
from .statistics import Interval, first_failures, intervals

_SHARE = ".1%"


def studio_sections(records: Sequence[Record], table: pd.DataFrame) -> dict[str, Any]:
    """Return these sections of report.json; `table` is the `turn_table` of the records."""
    verdicts = table[list(VERDICTS)]
    kinds = pd.Series([turn["kind"] for record in records for turn in record["turns"]], table.index)
    turns = range(len(records[0]["turns"]))
    edits = verdicts[["success"]].where(kinds != "null").rename(columns={"success": "success_of_edits"})
    return {
        "not_applicable_by_turn": [
            sum(record["turns"][turn]["not_applicable"] for record in records) for turn in turns
        ],
        "first_failure": first_failures(np.array([[is_success(turn) for turn in r["turns"]] for r in records])),
        "overall": _over_turns(verdicts) | _over_turns(edits),
        "by_kind": _by_kind(verdicts, kinds),
        "probes": _probes(records, table),
    }


def print_studio_sections(report: dict[str, Any]) -> None:
    if any(report["not_applicable_by_turn"]):
        print("\nnot applicable by turn:", *report["not_applicable_by_turn"])
    if report["probes"]:
        rows = [
            [
                *(probe[name] for name in ("turn", "what", "sessions")),
                *(interval_text(probe[name], _SHARE) for name in ("success", "accuracy")),
            ]
            for probe in report["probes"]
        ]
        print("\n" + markdown_table(("turn", "probe", "sessions", "success", "accuracy"), rows), end="")
    rows = []
    for kind, parts in report["by_kind"].items():
        first, every = parts["turn 1"], parts["all turns"]
        shares = [f"{part['success']:.1%} of {part['count']}" if part["count"] else "-" for part in (first, every)]
        rows.append([kind, *shares, *(format(every[name], _SHARE) for name in VERDICTS[1:])])
    heads = ("kind", "success at turn 1", "success over all turns", *VERDICTS[1:])
    print("\n" + markdown_table(heads, rows))
    overall, failure = report["overall"], report["first_failure"]
    success, of_edits = (interval_text(overall[name], _SHARE) for name in ("success", "success_of_edits"))
    print(f"success {success}, without null edits {of_edits}")
    print(f"first failure at turn {failure['median'] or '-'} (median); never in {failure['never']} sessions")


def _over_turns(table: pd.DataFrame) -> dict[str, Interval | None]:
    sessions = table.groupby("session")
    return dict(zip(table.columns, intervals(sessions.sum(), sessions.count())))


def _by_kind(verdicts: pd.DataFrame, kinds: pd.Series) -> dict[str, dict[str, dict[str, float]]]:
    tables = {}
    for kind in KINDS:
        every = verdicts[kinds == kind].dropna()
        if len(every):
            first = every[every.index.get_level_values("turn") == 1]
            tables[kind] = {"turn 1": _shares(first), "all turns": _shares(every)}
    return tables


def _shares(verdicts: pd.DataFrame) -> dict[str, float]:
    """Return the number of turns, and the share of each verdict; without turns there are no shares."""
    shares = verdicts.mean().dropna().round(4)
    return {"count": len(verdicts), **{str(name): float(share) for name, share in shares.items()}}


def _probes(records: Sequence[Record], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each probe of the protocol, by its words and its turn."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for session, record in enumerate(records):
        for probe in record["probes"]:
            success = table["success"].loc[session, probe["turn"]]
            groups.setdefault((probe["what"], probe["turn"]), []).append((success, probe_is_right(record, probe)))
    rows = []
    for (what, turn), results in sorted(groups.items()):
        success, accuracy = intervals(results)
        count = int((~np.isnan(np.array(results)[:, 1])).sum())
        rows.append({"what": what, "turn": turn, "sessions": count, "success": success, "accuracy": accuracy})
    return rows
