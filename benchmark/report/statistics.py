"""Statistics over sessions, with 95 % bootstrap intervals (Efron 1979, https://doi.org/10.1214/aos/1176344552).

Sessions are resampled, not turns: the turns of one session are not independent. `scipy.stats.bootstrap` would return
NaN where one resample has no turn that counts, and refuses a single session.

Legend: N sessions, K statistics (one per turn, say), B resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_RESAMPLES = 2000
_QUANTILES = (0.025, 0.975)
_DIGITS = 4

Interval = dict[str, float]  # {"mean", "low", "high"}


def intervals(totals: ArrayLike, counts: ArrayLike | None = None, seed: int = 0) -> list[Interval | None]:
    """Return mean and interval of K statistics: the sum of `totals` [N, K] over the sum of `counts` [N, K].

    Without counts, NaN marks a missing value. A statistic that no session has is None.
    """
    totals = np.asarray(totals, dtype=np.float64)
    if counts is None:
        counts, totals = ~np.isnan(totals), np.nan_to_num(totals)
    return _summaries(_means(totals, counts, seed))


def paired_difference(
    one: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> Interval | None:
    """Return the mean of the first minus that of the second: totals and counts [N] each, of the same sessions.

    Both are resampled together, so that what makes a session hard cancels out.
    """
    means = [_means(np.reshape(totals, (-1, 1)), np.reshape(counts, (-1, 1)), seed) for totals, counts in (one, other)]
    return _summaries(means[0] - means[1])[0]


def succeeded_so_far(success: np.ndarray) -> np.ndarray:
    """Return whether the first k turns all succeeded, k = 1 ... T: bool [..., T] -> bool [..., T]. Its mean is SR@k."""
    return np.logical_and.accumulate(success, axis=-1)


def first_failures(success: np.ndarray) -> dict[str, Any]:
    """Count at which turn sessions fail first, of bool [N, T]: "by_turn" [T], "never", and the "median" turn.

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


def _means(totals: ArrayLike, counts: ArrayLike, seed: int) -> np.ndarray:
    """Return the means [1 + B, K] of all sessions and of each resample; NaN where nothing counts."""
    totals, counts = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    sessions = len(totals)
    resampled = np.random.default_rng(seed).multinomial(sessions, [1 / sessions] * sessions, _RESAMPLES)  # [B, N]
    weights = np.vstack([np.ones(sessions), resampled])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ totals) / (weights @ counts)


def _summaries(means: np.ndarray) -> list[Interval | None]:
    """Return an interval for each of K statistics from its means [1 + B, K]."""
    summaries: list[Interval | None] = []
    for mean, *resampled in means.T:
        if not np.isfinite(mean):
            summaries.append(None)
            continue
        low, high = np.nanquantile(resampled, _QUANTILES)
        values = {"mean": mean, "low": low, "high": high}
        summaries.append({name: round(float(value), _DIGITS) for name, value in values.items()})
    return summaries
