"""Intervals against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluate.statistics import bootstrap_mean, wilson, win_rate


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(wins: int, count: int, low: float, high: float) -> None:
    rate = wilson(wins, count)
    assert rate.value == pytest.approx(wins / count)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 3000), st.floats(0, 1))
def test_wilson_stays_in_range_and_is_symmetric(count: int, share: float) -> None:
    wins = round(share * count)
    rate, mirrored = wilson(wins, count), wilson(count - wins, count)
    assert -1e-9 <= rate.low <= rate.value + 1e-9 and rate.value <= rate.high + 1e-9 <= 1 + 1e-6
    assert rate.low == pytest.approx(1 - mirrored.high, abs=1e-9)


def test_nothing_counted_says_nothing() -> None:
    rate = wilson(0, 0)
    assert (rate.low, rate.high) == (0.0, 1.0)


def test_wilson_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rates = [wilson(int(w), 200) for w in rng.binomial(200, 0.8, 2000)]
    covered = np.mean([r.low <= 0.8 <= r.high for r in rates])
    assert 0.93 < covered < 0.97


def test_a_tie_is_half_a_win() -> None:
    rate = win_rate(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 2.0, 5.0]))
    assert (rate.value, rate.count) == (0.625, 4)


def test_bootstrap_mean_brackets_the_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert low < mean < high
    assert bootstrap_mean(values) == (mean, low, high)
