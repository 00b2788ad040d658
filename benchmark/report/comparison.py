"""Finished runs side by side: a page to read, and the same figures for programs.

    python -m benchmark compare runs/ablation --out runs/report
    python -m benchmark compare runs/pipeline runs/decode-reencode --out runs/report --into README.md

Runs of the same sessions stand in one table; those that differ in their sampling seed alone are pooled (`pooled.py`).
DIR/report.html is one file with tables, plots and filmstrips; DIR/report.json and DIR/report.csv hold every figure.
`--into FILE` writes the tables into a Markdown file, in place of what is between its lines `<!-- benchmark -->` and
`<!-- end of benchmark -->`.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError

from ..run_folder import write_json
from ..suites.similarity import SIMILARITIES
from .editor_runs import Comparison, Group, find_comparisons
from .page import draw_page
from .run_report import PROBES_RIGHT
from .statistics import Interval

_TURNS = (1, 3, 6, 12, 24, 50)  # in a table, and the last one
_SIMILAR = tuple(SIMILARITIES)
_CHAIN = 6  # SR@k in a table
_LAST = ("identity", "untouched", "persistence")  # of the last turn
Unit = tuple[int, int]  # what a figure is multiplied by, and digits behind the point
_PERCENT, _AMOUNT = (100, 1), (1, 2)
_BEGIN, _END = "<!-- benchmark -->", "<!-- end of benchmark -->"


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    comparisons = find_comparisons(args.runs)
    write_report(comparisons, args.out)
    if args.into:
        _write_into(
            args.into, "\n".join(f"{comparison.title}:\n\n{markdown(comparison)}" for comparison in comparisons)
        )
    for comparison in comparisons:
        print(f"{comparison.title}\n\n{markdown(comparison)}")
    print(f"{args.out / 'report.html'}")
    return 0


def write_report(comparisons: Sequence[Comparison], folder: Path) -> None:
    """report.json, report.csv and report.html of these comparisons."""
    write_json([_as_json(comparison) for comparison in comparisons], folder / "report.json")
    for name, text in (("report.csv", _as_csv(comparisons)), ("report.html", draw_page(comparisons, table))):
        with atomic_write(folder / name, "report") as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of a comparison's table."""
    return (_photo_table if comparison.settings["suite"] == "photos" else _studio_table)(comparison)


def _studio_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Success in percent."""
    turns = comparison.settings["turns"]
    shown = sorted({turn for turn in (*_TURNS, turns) if turn <= turns})
    chain = min(_CHAIN, turns)
    heads = ["editor", *(f"turn {turn}" for turn in shown), "all turns", "against the first"]
    last = [*_LAST, *([PROBES_RIGHT] if any(comparison.groups[0].by_turn[PROBES_RIGHT]) else [])]
    heads += [f"SR@{chain}", *(f"{name} at {turns}" for name in last), "s per turn"]
    rows = []
    for group in comparison.groups:
        by_turn = group.by_turn
        first = group is comparison.groups[0]
        row = [group.name, *(_mean(by_turn["success"][turn - 1], _PERCENT) for turn in shown)]
        row += [_between(group.overall, _PERCENT)]
        row += ["" if first else _between(group.against(comparison.groups[0]), _PERCENT, "+")]
        row += [_mean(by_turn["SR@k"][chain - 1], _PERCENT)]
        row += [_mean(by_turn[name][-1], _PERCENT) for name in last]
        rows.append([*row, f"{sum(group.seconds_by_turn) / turns:.3f}"])
    return heads, rows


def _photo_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Drift of colour where it is known, and at the last such turn what else has drifted."""
    known = [
        turn for turn, figure in enumerate(comparison.groups[0].by_turn.get("drift: delta_e", ()), start=1) if figure
    ]
    shown = sorted({min(known, key=lambda turn: abs(turn - wanted)) for wanted in _TURNS[1:]}) if known else []
    last = known[-1] if known else comparison.settings["turns"]
    measured = ["drift: sharpness", "drift: shift", "drift: ssim_loss"]
    measured += [name for name in _SIMILAR if any(name in group.by_turn for group in comparison.groups)]
    heads = ["editor", *(f"delta E at {turn}" for turn in shown), "all known turns", "against the first"]
    heads += [f"{name.removeprefix('drift: ')} at {last}" for name in measured] + ["change of a turn", "s per turn"]
    rows = []
    for group in comparison.groups:
        by_turn = group.by_turn
        row = [group.name, *(_mean(by_turn["drift: delta_e"][turn - 1], _AMOUNT) for turn in shown)]
        row += [
            _between(group.overall, _AMOUNT),
            "" if group is comparison.groups[0] else _between(group.against(comparison.groups[0]), _AMOUNT, "+"),
        ]
        row += [_mean(by_turn[name][last - 1], _AMOUNT) if name in by_turn else "-" for name in measured]
        changes = [figure["mean"] for figure in by_turn["change"] if figure]
        seconds = group.seconds_by_turn
        rows.append([*row, f"{sum(changes) / len(changes):.2f}", f"{sum(seconds) / len(seconds):.3f}"])
    return heads, rows


def markdown(comparison: Comparison) -> str:
    """Return the same as a Markdown table."""
    heads, rows = table(comparison)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write_into(path: Path, text: str) -> None:
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error.strerror})", "Give a Markdown file") from None
    before, begin, rest = page.partition(_BEGIN + "\n")
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise AnchorEditError(f"'{path}' has no place for the tables", f"Put in the lines {_BEGIN} and {_END}")
    with atomic_write(path, "page") as unfinished:
        unfinished.write_text(before + begin + "\n" + text + "\n" + end + after, encoding="utf-8")


def _as_json(comparison: Comparison) -> dict[str, Any]:
    first = comparison.groups[0]
    return {
        **comparison.settings,
        "groups": [
            {
                "name": group.name,
                "runs": [str(run.folder) for run in group.runs],
                "settings": group.runs[0].settings,
                "by_turn": group.by_turn,
                "overall": group.overall,
                "absent": group.absent,
                "against_first": None if group is first else group.against(first),
                "cost": {"seconds_by_turn": group.seconds_by_turn},
            }
            for group in comparison.groups
        ],
    }


def _as_csv(comparisons: Sequence[Comparison]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["suite", "protocol", "turns", "sessions", "editor", "figure", "turn", "mean", "low", "high"])
    for comparison in comparisons:
        sessions = [comparison.settings[name] for name in ("suite", "protocol", "turns", "sessions")]
        for group in comparison.groups:
            writer.writerows([*sessions, *row] for row in _rows(group))
    return out.getvalue()


def _rows(group: Group) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, figures in group.by_turn.items():
        for turn, figure in enumerate(figures, start=1):
            rows.append([group.name, name, turn, *((figure or {}).get(key, "") for key in ("mean", "low", "high"))])
    seconds = group.seconds_by_turn
    return rows + [[group.name, "seconds", turn, value, "", ""] for turn, value in enumerate(seconds, start=1)]


def _mean(figure: Interval | None, unit: Unit) -> str:
    scale, digits = unit
    return f"{scale * figure['mean']:.{digits}f}" if figure else "-"


def _between(figure: Interval | None, unit: Unit, sign: str = "") -> str:
    if not figure:
        return "-"
    scale, digits = unit
    mean, low, high = (f"{scale * figure[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or folders that hold such")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file to write the tables into")
    return parser
