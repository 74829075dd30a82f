"""Splits without a state, and readings of exactly four pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.readings import READ_AT_ONCE, SPLIT_SHARES, chunks, readings, split_of


def test_the_encoder_reads_as_many_at_once() -> None:
    from ppd_serve.preferences.encoder import CHUNK

    assert READ_AT_ONCE == CHUNK


def test_a_person_is_always_in_one_split() -> None:
    # Frozen: were these to change, people that a model was trained on would be tested on.
    hundred = [str(user) for user in range(100)]
    assert [u for u in hundred if split_of(u) == "dev"] == ["8", "18", "51", "65", "98"]
    assert [u for u in hundred if split_of(u) == "test"] == ["5", "49", "61", "88"]
    counts = Counter(split_of(str(user)) for user in range(20_000))
    assert sum(SPLIT_SHARES.values()) == pytest.approx(1)
    for split, share in SPLIT_SHARES.items():
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(counts[split] - 20_000 * share) < 4 * deviation


def test_chunks_are_of_four_in_order_and_a_remainder_is_not_read() -> None:
    assert chunks("abcdefghijk") == [tuple("abcd"), tuple("efgh")]
    assert chunks("abc") == []


@given(st.lists(st.integers(0, 3), max_size=60), st.one_of(st.none(), st.integers(1, 20)))
def test_a_reading_is_of_one_person_and_no_pair_is_read_twice(
    user: list[int], most: int | None
) -> None:
    found = readings(user, most)
    assert found.shape == (len(found), 4)
    assert len(np.unique(found)) == found.size
    for four in found:
        assert len({user[pair] for pair in four}) == 1 and (np.diff(four) > 0).all()
    for who in set(user):
        read = [four for four in found if user[four[0]] == who]
        assert len(read) == min(user.count(who), most or 60) // 4


def test_the_first_pairs_of_a_person_count() -> None:
    user = np.array([0, 1] * 5 + [1] * 8)
    assert readings(user).tolist() == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
        [9, 10, 11, 12],
        [13, 14, 15, 16],
    ]
    assert readings(user, 7).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
