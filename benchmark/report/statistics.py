"""Figures over sessions, with bootstrap intervals: https://doi.org/10.1214/aos/1176344552 (Efron 1979), percentiles.

Sessions are what is drawn again, not turns: the turns of one session are not independent of each other.

Legend: N sessions, K figures (turns, say).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 2000
_COVERED = 0.95
_DIGITS = 4

Interval = dict[str, float]  # {"mean", "low", "high"}


def intervals(totals: np.ndarray, counts: np.ndarray | None = None, seed: int = 0) -> list[Interval | None]:
    """Mean and 95 % interval of each of K figures: sum of `totals` [N, K] over sum of `counts` [N, K], over N sessions.

    Without counts NaN marks what is missing. A figure that no session has is None.
    """
    totals = np.asarray(totals, dtype=np.float64)
    if counts is None:
        counts, totals = ~np.isnan(totals), np.nan_to_num(totals)
    counts = np.asarray(counts, dtype=np.float64)
    sessions = len(totals)
    drawn = np.random.default_rng(seed).multinomial(sessions, [1 / sessions] * sessions, _RESAMPLES)  # [B, N]
    with np.errstate(invalid="ignore"):
        means = (drawn @ totals) / (drawn @ counts)  # [B, K]; NaN where a resample has none
    figures: list[Interval | None] = []
    for total, count, column in zip(totals.sum(axis=0), counts.sum(axis=0), means.T):
        if not count:
            figures.append(None)
            continue
        tail = (1 - _COVERED) / 2
        low, high = np.nanquantile(column, [tail, 1 - tail])
        values = {"mean": total / count, "low": low, "high": high}
        figures.append({name: round(float(value), _DIGITS) for name, value in values.items()})
    return figures


def paired_difference(
    totals: tuple[np.ndarray, np.ndarray], counts: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Interval | None:
    """Mean of the first minus that of the second, and its interval: sums and counts [N] each, of the same sessions.

    Both are drawn again together, so that what makes a session hard cancels out.
    """
    sessions = len(totals[0])
    drawn = np.random.default_rng(seed).multinomial(sessions, [1 / sessions] * sessions, _RESAMPLES)  # [B, N]
    whole = np.ones((1, sessions))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, means = (
            weights @ totals[0] / (weights @ counts[0]) - weights @ totals[1] / (weights @ counts[1])
            for weights in (whole, drawn)
        )
    if not np.isfinite(mean[0]):
        return None
    tail = (1 - _COVERED) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return {name: round(float(value), _DIGITS) for name, value in (("mean", mean[0]), ("low", low), ("high", high))}


def interval(totals: Sequence[float], counts: Sequence[float]) -> Interval | None:
    """`intervals` of one figure: sums over the turns of each of N sessions."""
    return intervals(np.array(totals)[:, None], np.array(counts)[:, None])[0]


def succeeded_so_far(success: np.ndarray) -> np.ndarray:
    """Whether the first k turns all succeeded, for k = 1 ... T: bool [N, T] -> bool [N, T]. Its mean is SR@k."""
    return np.logical_and.accumulate(success, axis=1)


def first_failures(success: np.ndarray) -> dict:
    """At which turn sessions fail first, of bool [N, T]: counts "by_turn" [T] and "never", and the "median" turn.

    The median is None if half of the sessions or more never fail.
    """
    turns = success.shape[1]
    first = np.where(success.all(axis=1), turns, success.argmin(axis=1))  # from 0; T: never
    counts = np.bincount(first, minlength=turns + 1)
    median = int(np.sort(first)[(len(first) - 1) // 2])
    return {
        "by_turn": counts[:turns].tolist(),
        "never": int(counts[turns]),
        "median": median + 1 if median < turns else None,
    }
