"""An image tower alone, beside the VLM: the maps, and every figure with a handful of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppd_serve.release import load_release
from ppd_serve.settings import STUDIO
from tests.training.studio import small_pool
from training.data.pool import PairSampler, png
from training.data.users import people
from training.evaluate.day_one import (
    VLM,
    WITH,
    WITHOUT,
    Tower,
    cosines,
    day_one_markdown,
    fit_map,
    invert,
    judge_day_one,
    usual_length,
    write_day_one,
)


@pytest.fixture(scope="module")
def tower() -> Tower:
    return Tower(load_release(STUDIO).load_vlm(), small_pool(60), directions=12)


def test_features_have_unit_variance_and_are_the_encoders_own_looks(tower: Tower) -> None:
    pool, encoder = small_pool(60), load_release(STUDIO).load_vlm()
    looks = np.stack([encoder.look(png(image)) for image in pool.images])
    features = (looks - looks.mean(0)) @ tower.projection
    np.testing.assert_allclose(features.std(0), 1, atol=1e-3)
    preferred, rejected = np.array([[0, 1]]), np.array([[2, 3]])
    expected = (features[[0, 1]] - features[[2, 3]]).mean(0)
    np.testing.assert_allclose(tower.differences(pool, preferred, rejected)[0], expected, atol=1e-2)


def test_a_planted_map_is_found_again() -> None:
    rng = np.random.default_rng(0)
    differences, planted = rng.normal(size=(400, 6)), rng.normal(size=(6, 3))
    noisy = differences @ planted + 0.1 * rng.normal(size=(400, 3))
    np.testing.assert_allclose(fit_map(differences, noisy), planted, atol=0.05)
    response = rng.normal(size=(3, 6))
    taste = rng.normal(size=(5, 3))
    np.testing.assert_allclose(taste @ response @ invert(response), taste, atol=1e-9)


def test_embeddings_have_their_usual_length() -> None:
    found = usual_length(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found.shape == (2, 1, 2)
    np.testing.assert_allclose(np.linalg.norm(found[:, 0], axis=1), [np.sqrt(2), 0], rtol=1e-6)
    np.testing.assert_allclose(cosines(found, np.array([[3.0, 4.0], [1.0, 0.0]])), [1, 0])


@pytest.mark.slow
def test_the_tower_sees_what_training_people_like(tower: Tower) -> None:
    """Choices of many, through the fitted map, point where their tastes do."""
    pool, crowd = small_pool(60), people("train", 300)
    drawn = PairSampler(pool).draw(crowd, 16, np.random.default_rng(0))
    known = crowd.weight @ np.random.default_rng(1).normal(size=(8, 4))
    differences = tower.differences(pool, *drawn)
    fitted = fit_map(differences[:200], known[:200])
    assert cosines(differences[200:] @ fitted, known[200:]).mean() > 0.3


@pytest.mark.slow
def test_every_figure_is_taken_and_told(tmp_path: Path) -> None:
    report = judge_day_one(
        STUDIO, split="dev", users=3, work=tmp_path, counts=(2,), pictures=16, train_people=40,
        train_pool=80, pool_size=80,
    )  # fmt: skip
    ways = report["choices"]["2"]
    assert set(ways) == {VLM, WITH, WITHOUT}
    for way in ways.values():
        assert -1 <= way["cosine_to_taste"]["value"] <= 1
        assert way["against_base"]["win_rate"]["count"] == way["against_vlm"]["count"] == 3
    assert ways[VLM]["against_vlm"]["value"] == 0.5  # every one a tie with itself
    write_day_one(report, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert page == day_one_markdown(report) and WITHOUT in page
