"""Compare finished runs: a page to read, and every metric for programs.

    python -m benchmark compare runs/ablation --out runs/comparison
    python -m benchmark compare runs/pipeline runs/decode-reencode --out runs/comparison --into docs/benchmark.md

Runs of the same sessions share a table, in which the first is the baseline; runs that differ in their sampling seed
alone are pooled. OUT/comparison.html is one file with tables, plots and filmstrips; OUT/comparison.json and
OUT/comparison.csv hold every metric. `--into FILE` writes the tables into a Markdown file, between its lines
`<!-- benchmark -->` and `<!-- end of benchmark -->`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anchoredit_model.atomic_write import atomic_write
from anchoredit_model.errors import AnchorEditError

from ..run_folder import write_json
from .editor_runs import Comparison, EditorRuns, find_comparisons
from .markdown import interval_text, markdown_table, mean_text
from .page import draw_page
from .statistics import Interval

_TURNS = (1, 3, 6, 12, 24, 50)  # columns of a table, besides the last turn
_CHAIN = 6  # k of SR@k in a table
_BEGIN, _END = "<!-- benchmark -->", "<!-- end of benchmark -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="folders of runs, or folders that hold such")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the comparison")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file to write the tables into")


def main(args: argparse.Namespace) -> int:
    comparisons = find_comparisons(args.runs)
    tables = write_comparisons(comparisons, args.out)
    if args.into:
        _write_into(args.into, tables)
    print(tables)
    print(args.out / "comparison.html")
    return 0


def write_comparisons(comparisons: Sequence[Comparison], folder: Path) -> str:
    """Write comparison.json, .csv and .html; return the tables as Markdown."""
    tables = [comparison_table(comparison) for comparison in comparisons]
    write_json([_as_json(comparison) for comparison in comparisons], folder / "comparison.json")
    csv = pd.DataFrame([row for comparison in comparisons for row in _rows(comparison)]).to_csv(index=False)
    for name, text in (("comparison.csv", csv), ("comparison.html", draw_page(comparisons, tables))):
        with atomic_write(folder / name, "comparison") as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
    return "\n".join(
        f"{comparison.title}:\n\n{markdown_table(list(table), table.itertuples(index=False))}"
        for comparison, table in zip(comparisons, tables)
    )


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """Return a row of texts per editor; shares are in percent."""
    layout, baseline = comparison.layout, comparison.baseline
    spec = layout.metrics[layout.main].axis.format
    counted = [turn for turn, value in enumerate(baseline.by_turn[layout.main], start=1) if value]
    last = counted[-1] if counted else comparison.settings["turns"]
    shown = sorted({min(counted, key=lambda turn: abs(turn - wanted)) for wanted in (*_TURNS, last)}) if counted else []

    def at(metric: str, turn: int) -> Callable[[EditorRuns], str]:
        return lambda editor: mean_text(editor.by_turn[metric][turn - 1], layout.metrics[metric].axis.format)

    def difference(editor: EditorRuns) -> str:
        return "" if editor is baseline else interval_text(editor.difference(baseline), f"+{spec}")

    columns: dict[str, Callable[[EditorRuns], str]] = {"editor": lambda editor: editor.name}
    columns |= {f"{layout.head} {turn}": at(layout.main, turn) for turn in shown}
    columns |= {"all turns": lambda editor: interval_text(editor.overall, spec), "vs. baseline": difference}
    if "SR@k" in layout.metrics:
        k = min(_CHAIN, last)
        columns[f"SR@{k}"] = at("SR@k", k)
    for name, metric in layout.metrics.items():
        if metric.in_last and comparison.has(name):
            columns[f"{name.removeprefix('drift: ')} at {last}"] = at(name, last)
    if "change" in layout.metrics:
        columns["change per turn"] = lambda editor: f"{_mean(editor.by_turn['change']):.3f}"
    columns["s per turn"] = lambda editor: f"{sum(editor.seconds_by_turn) / len(editor.seconds_by_turn):.3f}"
    editors = comparison.editors
    return pd.DataFrame({head: [cell(editor).replace("%", "") for editor in editors] for head, cell in columns.items()})


def _mean(by_turn: Sequence[Interval | None]) -> float:
    means = [value["mean"] for value in by_turn if value]
    return sum(means) / len(means)


def _write_into(path: Path, text: str) -> None:
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AnchorEditError(f"'{path}' cannot be read ({error.strerror})", "Give a Markdown file") from None
    before, begin, rest = page.partition(_BEGIN + "\n")
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise AnchorEditError(f"'{path}' must have the lines {_BEGIN} and {_END}", "Add them where the tables belong")
    with atomic_write(path, "page") as unfinished:
        unfinished.write_text(before + begin + "\n" + text + "\n" + end + after, encoding="utf-8")


def _as_json(comparison: Comparison) -> dict[str, Any]:
    baseline = comparison.baseline
    return {
        **comparison.settings,
        "editors": [
            {
                "name": editor.name,
                "runs": [str(run.folder) for run in editor.runs],
                "settings": editor.runs[0].settings,
                "by_turn": editor.by_turn,
                "overall": editor.overall,
                "vs_baseline": None if editor is baseline else editor.difference(baseline),
                "absent": editor.absent,
                "seconds_by_turn": editor.seconds_by_turn,
            }
            for editor in comparison.editors
        ],
    }


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of comparison.csv: a value per editor, metric and turn."""
    sessions = {name: comparison.settings[name] for name in ("suite", "protocol", "turns", "sessions")}
    rows = []
    for editor in comparison.editors:
        seconds: list[Interval | None] = [{"mean": value} for value in editor.seconds_by_turn]
        for metric, values in {**editor.by_turn, "seconds": seconds}.items():
            for turn, value in enumerate(values, start=1):
                rows.append({**sessions, "editor": editor.name, "metric": metric, "turn": turn, **(value or {})})
    return rows
