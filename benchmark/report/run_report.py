"""`report.json` from the records of a run (`benchmark.runner`), and its tables for people.

success_by_turn, followed_by_turn, untouched_by_turn, identity_by_turn     [T] of {mean, low, high}, over the
                     sessions in which the turn is not moot (see `benchmark.runner`)
moot_by_turn         [T]: in how many it is
persistence_by_turn  share of the facts set by earlier instructions that the image still shows; null where
                     there are none
SR@k                 [T]: share of sessions whose first k turns all succeeded
first_failure        at which turn, and how many never
overall              over all turns; `success_of_edits` without null edits
by_kind              of instruction: at turn 1, where nothing has gone wrong yet, and over all turns
marks                what the protocol is about: success of the turn, and whether the facts in question are right,
                     over the sessions in which that says anything (`_is_right`)
damage_by_turn, likeness_by_turn, drift_by_turn
cost                 all that another run of the same seeds may say differently
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studio.instructions import KINDS

from .statistics import Interval, first_failures, interval, intervals, succeeded_so_far

_DRIFT_SHOWN = ("delta_e", "shift", "sharpness")  # of the figures in the report, in the table
JUDGED = ("success", "followed", "untouched", "identity")
MEASURED = ("damage", "likeness")
PROBES_RIGHT = "in question"  # the figure: whether the facts that the protocol is about are right


def make_report(settings: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the report of a finished run: `records` of all its sessions, in order."""
    tables = by_session(records)
    success = np.array([[is_success(turn) for turn in record["turns"]] for record in records])
    return {
        "suite": settings["suite"],
        "editor": settings["editor"],
        "protocol": settings["protocol"],
        "model": settings["editor_settings"].get("model"),
        "settings": settings,
        **{f"{name}_by_turn": intervals(tables[name]) for name in JUDGED},
        "moot_by_turn": [sum(record["turns"][turn]["moot"] for record in records) for turn in range(success.shape[1])],
        "persistence_by_turn": intervals(tables["persistence"]),
        "SR@k": intervals(tables["SR@k"]),
        "first_failure": first_failures(success),
        "overall": _overall(records),
        "by_kind": _by_kind(records),
        "marks": _marks(records),
        **{f"{name}_by_turn": intervals(tables[name]) for name in MEASURED},
        "drift_by_turn": {name: intervals(tables[f"drift: {name}"]) for name in _drift_names(records)},
        "cost": cost_of(records),
    }


def by_session(records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every figure of N sessions of T turns by its name, [N, T]; NaN where a turn does not count."""

    def table(value) -> np.ndarray:
        return np.array([[value(turn) for turn in record["turns"]] for record in records], dtype=np.float64)

    drifts = {
        f"drift: {name}": table(lambda turn, name=name: (turn["drift"] or {}).get(name, np.nan))
        for name in _drift_names(records)
    }
    return {
        **{name: table(lambda turn, name=name: _value(turn, name)) for name in JUDGED},
        "persistence": np.array([_persistence(record["turns"]) for record in records]),
        "SR@k": succeeded_so_far(table(is_success).astype(bool)),
        PROBES_RIGHT: np.array([_in_question(record) for record in records]),
        **{name: table(lambda turn, name=name: turn[name]) for name in MEASURED},
        **drifts,
    }


def print_report(report: dict[str, Any]) -> None:
    """Markdown tables: by turn, by kind, and what the protocol is about."""
    turns = range(1, len(report["success_by_turn"]) + 1)
    print_row("turn", turns)
    print("|---" * (len(turns) + 1) + "|")
    for name in (*JUDGED, "persistence"):
        print_row(name, [_percent(figure) for figure in report[f"{name}_by_turn"]])
    print_row("SR@k", [_percent(figure) for figure in report["SR@k"]])
    if any(report["moot_by_turn"]):
        print_row("moot", report["moot_by_turn"])
    measured = {name: report[f"{name}_by_turn"] for name in MEASURED}
    measured |= {f"drift: {name}": figures for name, figures in report["drift_by_turn"].items() if name in _DRIFT_SHOWN}
    for name, figures in measured.items():
        print_row(name, [f"{figure['mean']:.3f}" if figure else "-" for figure in figures])
    if report["marks"]:
        print("\n| turn | what | sessions | success | facts right |\n|---|---|---|---|---|")
        for mark in report["marks"]:
            print_row(
                mark["turn"], [mark["what"], mark["sessions"], _between(mark["success"]), _between(mark["right"])]
            )
    print("\n| kind | success at turn 1 | success over all turns | followed | untouched | identity |")
    print("|---" * 6 + "|")
    for kind, row in report["by_kind"].items():
        first, every = row["turn 1"], row["all turns"]
        shares = [f"{part['success']:.1%} of {part['count']}" if part["count"] else "-" for part in (first, every)]
        print_row(kind, [*shares, *(f"{every[name]:.1%}" for name in JUDGED[1:])])
    overall, failure, cost = report["overall"], report["first_failure"], report["cost"]
    print(f"\nsuccess {_between(overall['success'])}, null edits left out {_between(overall['success_of_edits'])}")
    print(f"first failure at turn {failure['median'] or '-'} (median); never in {failure['never']} sessions")
    print(f"{cost['seconds_per_turn']:.3f} s per turn")


def is_success(turn: dict[str, Any]) -> bool:
    return turn["followed"] and turn["untouched"] and turn["identity"]


def _value(turn: dict[str, Any], name: str) -> float:
    """Return a verdict as a number; NaN if the turn does not count."""
    if turn["moot"]:
        return np.nan
    return float(is_success(turn) if name == "success" else turn[name])


def _persistence(turns: list[dict[str, Any]]) -> list[float]:
    """Per turn the share of facts right, of those that earlier instructions set and this one does not; NaN if none."""
    earlier: set[str] = set()
    shares = []
    for turn in turns:
        facts = earlier - set(turn["asked"])
        shares.append(len(facts - set(turn["wrong"])) / len(facts) if facts else np.nan)
        earlier |= set(turn["asked"])
    return shares


def _overall(records: Sequence[dict[str, Any]]) -> dict[str, Interval | None]:
    def over_turns(name: str, kinds: Sequence[str]) -> Interval | None:
        chosen = [[t for t in record["turns"] if t["kind"] in kinds and not t["moot"]] for record in records]
        return interval([sum(_value(turn, name) for turn in turns) for turns in chosen], [len(t) for t in chosen])

    edits = [kind for kind in KINDS if kind != "null"]
    return {name: over_turns(name, KINDS) for name in JUDGED} | {"success_of_edits": over_turns("success", edits)}


def _by_kind(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    tables = {}
    for kind in KINDS:
        of_kind = [[t for t in record["turns"] if t["kind"] == kind and not t["moot"]] for record in records]
        first = [turn for record, turns in zip(records, of_kind) for turn in turns if turn is record["turns"][0]]
        every = [turn for turns in of_kind for turn in turns]
        if every:
            tables[kind] = {"turn 1": _shares(first), "all turns": _shares(every)}
    return tables


def _shares(turns: list[dict[str, Any]]) -> dict[str, float]:
    """How many, and the share of each verdict; no shares of nothing."""
    shares = {name: round(sum(_value(turn, name) for turn in turns) / len(turns), 4) for name in JUDGED if turns}
    return {"count": len(turns), **shares}


def _marks(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the protocol asks about, turn by turn."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for record in records:
        for mark in record["marks"]:
            success = _value(record["turns"][mark["turn"] - 1], "success")
            groups.setdefault((mark["what"], mark["turn"]), []).append((success, _is_right(record, mark)))
    rows = []
    for (what, turn), results in sorted(groups.items()):
        table = np.array(results)
        success, right = intervals(table)
        count = int((~np.isnan(table[:, 1])).sum())
        rows.append({"what": what, "turn": turn, "sessions": count, "success": success, "right": right})
    return rows


def _in_question(record: dict[str, Any]) -> list[float]:
    """Per turn whether the facts of its mark are right; NaN if it has none."""
    marks = {mark["turn"]: mark for mark in record["marks"]}
    return [_is_right(record, marks[turn]) if turn in marks else np.nan for turn in range(1, len(record["turns"]) + 1)]


def _is_right(record: dict[str, Any], mark: dict[str, Any]) -> float:
    """Whether a mark's facts are right, 1 or 0.

    NaN where an editor that does nothing would be right (a moot turn), or where an earlier edit has to last that was
    not made in the first place.
    """
    facts, turn = set(mark["facts"]), record["turns"][mark["turn"] - 1]
    if facts & set(turn["asked"]):
        counts = not turn["moot"]
    else:
        made = [earlier for earlier in record["turns"][: mark["turn"] - 1] if facts & set(earlier["asked"])]
        counts = not made or not facts & set(made[-1]["wrong"])
    return float(not facts & set(turn["wrong"])) if counts else np.nan


def _drift_names(records: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({name for record in records for turn in record["turns"] for name in turn["drift"] or ()})


def cost_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time and memory; sessions may differ in length."""
    longest = max(len(record["turns"]) for record in records)
    seconds, held = (
        np.array([record["cost"][name] + [np.nan] * (longest - len(record["turns"])) for record in records])
        for name in ("seconds", "cache_bytes")
    )
    peaks = [record["cost"]["peak_bytes"] for record in records if record["cost"]["peak_bytes"]]
    return {
        "seconds_per_turn": round(float(np.nanmean(seconds)), 6),
        "seconds_by_turn": [round(value, 6) for value in np.nanmedian(seconds, axis=0).tolist()],
        "cache_bytes_by_turn": np.nanmax(held, axis=0).astype(int).tolist(),
        "peak_bytes": max(peaks, default=None),
    }


def print_row(first: Any, cells: Sequence[Any]) -> None:
    print("| " + " | ".join(map(str, (first, *cells))) + " |")


def _percent(figure: Interval | None) -> str:
    return f"{figure['mean']:.1%}" if figure else "-"


def _between(figure: Interval | None) -> str:
    return f"{figure['mean']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})" if figure else "-"
