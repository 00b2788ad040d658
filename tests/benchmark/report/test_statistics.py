"""Statistics with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmark.report.statistics import first_failures, intervals, succeeded_so_far

# turns of five sessions: fails at 2, never, at 1, at 4, at 2 (and again at 3)
SUCCESS = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=bool)


def test_success_so_far_and_first_failures():
    assert succeeded_so_far(SUCCESS).mean(axis=0).tolist() == [0.8, 0.4, 0.4, 0.2]
    assert first_failures(SUCCESS) == {"by_turn": [1, 2, 0, 1], "never": 1, "median": 2}
    assert first_failures(np.ones((3, 2), dtype=bool)) == {"by_turn": [0, 0], "never": 3, "median": None}
    assert first_failures(np.array([[True], [True], [False]]))["median"] is None  # two of three never fail


def test_an_interval_is_that_of_the_mean_over_sessions():
    heads = np.arange(400)[:, None] % 4 < 1  # a quarter of 400
    (found,) = intervals(heads)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found["mean"] == 0.25
    assert found["low"] == pytest.approx(0.25 - error, abs=0.006)
    assert found["high"] == pytest.approx(0.25 + error, abs=0.006)
    assert intervals(heads) == [found] and intervals(heads, seed=1) != [found]
    assert intervals(np.full((7, 1), 0.5)) == [{"mean": 0.5, "low": 0.5, "high": 0.5}]
    assert intervals(np.ones((1, 2))) == [{"mean": 1, "low": 1, "high": 1}] * 2  # one session


def test_turns_of_a_session_are_resampled_together():
    """Ten sessions that are all right or all wrong say as much over 50 turns as over one."""
    sessions = np.arange(10) % 2
    (one,), (many,) = (intervals(sessions[:, None] * n, np.full((10, 1), n)) for n in (1, 50))
    assert one == many and one["high"] - one["low"] > 0.5


def test_missing_values_are_ignored():
    values = np.array([[1.0, np.nan, np.nan], [0.0, 1.0, np.nan], [0.5, 0.0, np.nan]])
    first, second, third = intervals(values)
    assert first["mean"] == 0.5 and second["mean"] == 0.5 and third is None
    assert intervals([[3], [0]], [[4], [0]])[0]["mean"] == 0.75 and intervals([[0], [0]], [[0], [0]]) == [None]
