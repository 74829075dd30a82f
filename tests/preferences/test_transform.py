"""What differs between users is kept, what differs between readings of one user is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppd_serve.preferences.transform import BetweenUserTransform, fit_transform

Array = NDArray[np.float32]
USERS, READINGS, HIDDEN, PLANTED = 300, 5, 24, 3


def planted(seed: int, rows: int = 1) -> tuple[Array, Array]:
    """States of users who differ along three directions, far quieter than the readings' noise.

    The noise has its own four loud directions. Returns states and the users' true coordinates.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN)))[0]
    person = rng.normal(size=(USERS, PLANTED))
    noise = rng.normal(size=(USERS, READINGS, rows, HIDDEN)) * 0.05
    noise[..., :4] *= 100
    noise = noise @ basis.T
    between = 0.3 * person @ basis[:, 10 : 10 + PLANTED].T
    states = 7 + between[:, None, None] + noise
    return states.astype(np.float32), person.astype(np.float32)


def explained(x: Array, y: Array) -> NDArray[np.floating]:
    """Share of each column of y that a linear map of x explains."""
    x1 = np.c_[x, np.ones(len(x))]
    rest = y - x1 @ np.linalg.lstsq(x1, y, rcond=None)[0]
    return 1 - rest.var(0) / y.var(0)


def test_planted_directions_are_found_under_louder_noise() -> None:
    states, person = planted(0)
    transform = fit_transform(states, PLANTED)
    embedding = transform(states)[:, :, 0]
    assert explained(embedding[:, 0], person).min() > 0.85

    # The loudest directions of the states are noise: keeping those would have found nothing.
    flat = states[:, 0, 0] - states[:, 0, 0].mean(0)
    loudest = np.linalg.svd(flat, full_matrices=False)[2][:PLANTED]
    assert explained(flat @ loudest.T, person).max() < 0.1


def test_readings_of_one_user_stay_together() -> None:
    states, _ = planted(1)
    embedding = fit_transform(states, PLANTED)(states)[:, :, 0]
    within = embedding.std(1).mean()
    between = embedding.mean(1).std(0).mean()
    assert within < 0.35 * between


def test_unit_variance_around_the_average_user() -> None:
    states, _ = planted(2, rows=2)
    transform = fit_transform(states, 5)
    embedding = transform(states)
    assert embedding.shape == (USERS, READINGS, 2, 5)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding.mean((0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(embedding.std((0, 1)), 1, atol=1e-3)


def test_the_first_direction_tells_users_apart_best() -> None:
    states, _ = planted(3)
    embedding = fit_transform(states, 8)(states)[:, :, 0]
    ratio = embedding.mean(1).var(0) / embedding.var(1).mean(0)
    assert ratio[:PLANTED].min() > 5 * ratio[PLANTED:].max()


def test_new_users_of_the_same_kind_are_read_as_well() -> None:
    states, person = planted(4)
    transform = fit_transform(states[:200], PLANTED)
    seen = transform(states[:, 0])[:, 0]
    x1 = np.c_[seen, np.ones(USERS)]
    found = x1 @ np.linalg.lstsq(x1[:200], person[:200], rcond=None)[0]
    error = ((found - person)[200:] ** 2).mean(0) / person[200:].var(0)
    assert error.max() < 0.15


def test_fewer_users_than_dimensions_is_no_accident() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(8, 2, 1, 64)).astype(np.float32)
    transform = fit_transform(states, 4)
    assert np.isfinite(transform(states)).all()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    states, _ = planted(5, rows=2)
    transform = fit_transform(states, 4)
    transform.save(tmp_path / "t.safetensors")
    loaded = BetweenUserTransform.load(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(loaded(states), transform(states))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100), seed=st.integers(0, 5))
def test_scale_and_origin_of_the_states_do_not_matter(
    scale: float, shift: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(40, 1, 1, 6)) * np.arange(1, 7)
    states = person + rng.normal(size=(40, 3, 1, 6))
    moved = (states * scale + shift).astype(np.float32)
    one = fit_transform(states.astype(np.float32), 3)(states.astype(np.float32))
    other = fit_transform(moved, 3)(moved)
    assert np.abs(np.abs((one * other).mean((0, 1, 2))) - 1).max() < 1e-2  # a sign is free
