"""Tables and intervals as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .statistics import Interval


def markdown_table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def mean_text(interval: Interval | None, spec: str) -> str:
    """Return a mean in a format such as ".1%"; "-" where there is none."""
    return format(interval["mean"], spec) if interval else "-"


def interval_text(interval: Interval | None, spec: str) -> str:
    """Return "mean (low to high)"; "-" where there is none."""
    if not interval:
        return "-"
    mean, low, high = (format(interval[name], spec) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
