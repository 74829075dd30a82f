"""Users found again by their embeddings: exactly, by chance, and in between."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluate.identification import identification, left_out_ranks


def people(users: int, readings: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(users, 1, 2, 8))
    return taste + noise * rng.normal(size=(users, readings, 2, 8))


def test_clear_readings_find_everybody() -> None:
    found = identification(people(40, 3, 0.05))
    assert found.users == 40
    assert {k: rate.value for k, rate in found.top.items()} == {1: 1.0, 5: 1.0, 16: 1.0}
    assert found.top[1].count == 40 and 0.9 < found.top[1].low < 1.0
    assert found.chance == {1: 1 / 40, 5: 5 / 40, 16: 16 / 40}


def test_readings_that_say_nothing_find_as_many_as_chance() -> None:
    noise = np.random.default_rng(1).normal(size=(200, 4, 1, 12))
    found = identification(noise)
    for k, rate in found.top.items():
        assert rate.low < found.chance[k] < rate.high


def test_it_falls_as_the_noise_grows_and_rises_with_k() -> None:
    tops = [identification(people(60, 2, noise)).top for noise in (0.2, 1.0, 2.0, 8.0)]
    first = [top[1].value for top in tops]
    assert first == sorted(first, reverse=True) and first[0] > first[-1] + 0.5
    for top in tops:
        assert top[1].value <= top[5].value <= top[16].value


def test_ranks_against_a_plain_count() -> None:
    readings = people(9, 3, 1.5, seed=4)
    flat = readings.reshape(9, 3, -1)
    flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    for user in range(9):
        for k in range(3):
            others = [np.delete(flat[v], k, axis=0).mean(0) for v in range(9)]
            near = [flat[user, k] @ o / np.linalg.norm(o) for o in others]
            rank = sum(n > near[user] for v, n in enumerate(near) if v != user)
            assert left_out_ranks(readings)[user, k] == rank


def test_a_left_out_reading_never_helps_itself() -> None:
    lonely = people(30, 2, 0.05)
    lonely[:, 1] = np.random.default_rng(2).normal(size=lonely[:, 1].shape)  # says nothing
    assert identification(lonely).top[1].value < 0.3


def test_size_says_nothing_and_equal_embeddings_are_nobodys() -> None:
    readings = people(20, 2, 0.5)
    scaled = readings * np.random.default_rng(3).uniform(0.1, 10, (20, 2, 1, 1))
    assert (left_out_ranks(scaled) == left_out_ranks(readings)).all()
    assert identification(np.ones((20, 2, 1, 4))).top[1].value == 0
    assert identification(np.zeros((20, 2, 1, 4))).top[1].value == 0


def test_more_places_than_users_say_nothing() -> None:
    assert identification(people(4, 2, 0.1)).top.keys() == {1}


@pytest.mark.parametrize("shape", [(5, 1, 1, 4), (1, 3, 1, 4), (5, 2, 4)])
def test_there_must_be_another_reading_and_another_user(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="readings: "):
        identification(np.ones(shape))
