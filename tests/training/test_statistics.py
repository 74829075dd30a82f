"""Intervals against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluate.statistics import (
    bootstrap_mean,
    clustered_rate,
    paired_difference,
    spearman,
    wilson,
    win_rate,
)


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


@settings(deadline=None)  # a busy machine is no fault
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


def simulated(users: int, each: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Users who differ: each wins at their own rate, 60 % on average."""
    own = rng.beta(1.5, 1.0, users)
    return (rng.random((users, each)) < own[:, None]).astype(float), np.arange(users)


def test_a_clustered_rate_covers_where_wilson_would_be_too_sure() -> None:
    rng = np.random.default_rng(3)
    clustered, pooled = [], []
    for _ in range(300):
        wins, who = simulated(60, 12, rng)
        rate = clustered_rate(wins.ravel(), np.repeat(who, 12), draws=400)
        naive = wilson(wins.sum(), wins.size)
        assert (rate.value, rate.count) == (pytest.approx(naive.value), 720)
        clustered.append(rate.low <= 0.6 <= rate.high)
        pooled.append(naive.low <= 0.6 <= naive.high)
    assert 0.90 < np.mean(clustered) < 0.98
    assert np.mean(pooled) < 0.75


def test_with_one_comparison_each_it_is_nearly_wilson() -> None:
    wins = (np.random.default_rng(4).random(400) < 0.7).astype(float)
    rate, known = clustered_rate(wins, np.arange(400)), wilson(wins.sum(), 400)
    assert (rate.low, rate.high) == pytest.approx((known.low, known.high), abs=0.01)


def test_a_user_counts_by_their_comparisons_in_any_order() -> None:
    wins, who = np.array([1, 1, 1, 0, 0, 0.5]), np.array(["a", "a", "a", "b", "c", "c"])
    rate = clustered_rate(wins, who)
    assert (rate.value, rate.count) == (pytest.approx(3.5 / 6), 6)
    shuffled = np.random.default_rng(0).permutation(6)
    assert clustered_rate(wins[shuffled], who[shuffled]) == rate


def test_users_who_all_agree_are_not_taken_for_certainty() -> None:
    unanimous = clustered_rate(np.ones(50), np.repeat(np.arange(10), 5))
    assert (unanimous.value, unanimous.count) == (1.0, 50)
    assert (unanimous.low, unanimous.high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    alone = clustered_rate([1, 0, 1, 1], [7, 7, 7, 7])
    assert alone.value == 0.75 and alone.low < 0.3 and alone.high > 0.95


def test_a_paired_difference_is_narrower_than_two_rates() -> None:
    rng = np.random.default_rng(5)
    wins, who = simulated(80, 10, rng)
    users = np.repeat(who, 10)
    theirs = wins.ravel()
    ours = np.maximum(theirs, rng.random(800) < 0.1)
    found = paired_difference(ours, theirs, users)
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < found.low < found.value < found.high and found.count == 800
    apart = clustered_rate(ours, users)
    assert found.high - found.low < 0.5 * (apart.high - apart.low)
    back = paired_difference(theirs, ours, users)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    assert str(found).startswith("+") and "points" in str(found)


def test_a_paired_difference_that_nobody_showed_may_still_be_there() -> None:
    """600 pictures of 200 people, right in both or wrong in both: of others, two in a hundred may
    yet gain or lose."""
    same, users = np.arange(600) % 2, np.arange(600) // 3
    found = paired_difference(same, same, users)
    assert found.value == 0 and found.count == 600
    assert found.high == pytest.approx(wilson(0, 200).high) == -found.low > 0.015
    always = paired_difference(np.ones(20), np.zeros(20), np.arange(20))
    assert always.value == always.high == 1
    assert always.low == pytest.approx(1 - 2 * wilson(0, 20).high)


def test_a_paired_difference_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(300):
        lift = rng.normal(0.1, 0.15, 60)[:, None]
        ours, theirs = (rng.random((60, 8)) < 0.5 + x for x in (lift, 0.0))
        found = paired_difference(ours.ravel(), theirs.ravel(), np.repeat(np.arange(60), 8),
                                  draws=400)  # fmt: skip
        covered.append(found.low <= 0.1 <= found.high)
    assert 0.91 < np.mean(covered) < 0.985


@pytest.mark.parametrize(
    ("wins", "users"), [([1, 0], [1]), ([], []), (np.ones((2, 2)), np.ones((2, 2)))]
)
def test_users_and_comparisons_come_together(wins: list, users: list) -> None:
    with pytest.raises(ValueError, match="users: "):
        clustered_rate(wins, users)


def test_what_is_paired_has_two_sides() -> None:
    with pytest.raises(ValueError, match="theirs: "):
        paired_difference([1, 0], [1], [0, 0])


def test_spearman_against_a_published_example() -> None:
    # IQ and hours of television of ten people: the textbook's -29/165.
    iq = [106, 86, 100, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 0, 27, 50, 28, 29, 20, 12, 6, 17]
    assert float(spearman(iq, hours)) == pytest.approx(-29 / 165)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12
    )
)  # fmt: skip
def test_spearman_is_pearson_of_mean_ranks(points: list[tuple[int, int]]) -> None:
    x, y = (np.array(v, float) for v in zip(*points, strict=True))

    def ranks(v: np.ndarray) -> list[float]:
        return [np.mean([k for k, w in enumerate(sorted(v)) if w == one]) for one in v]

    found = float(spearman(x, y))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-12)
        assert float(spearman(np.exp(x), y)) == pytest.approx(found)


def test_spearman_runs_along_the_last_axis() -> None:
    shares = np.linspace(0, 1, 5)
    rewards = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 2, 1, 3, 4], [1, 1, 1, 1, 1.0]])
    found = spearman(rewards, shares)
    np.testing.assert_allclose(found, [1, -1, 0.9, np.nan])
    assert spearman(rewards[:, None], shares).shape == (4, 1)
