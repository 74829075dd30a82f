"""Pools on disk, and the pairs people choose from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.studio import small_pool
from training.data import pool as pools
from training.data.pool import PairSampler, Pool, load_pool
from training.data.users import people
from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paint in this process and note every shard painted."""
    painted: list[Path] = []

    class Inline:
        def __init__(self, _: int) -> None: ...
        def __enter__(self) -> Inline:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, paint, path, *rest):
            painted.append(path)
            value = paint(path, *rest)
            return type("Job", (), {"result": lambda self: value})()

    monkeypatch.setattr(pools, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(pools, "_SHARD", 12)
    return painted


def test_a_pool_is_painted_once_and_grows_at_its_end(tmp_path: Path, inline: list[Path]) -> None:
    few = load_pool(tmp_path, "train", 8)
    assert len(few) == 8 and few.images.shape[1:] == (128, 128, 3)
    again = load_pool(tmp_path, "train", 8)
    assert len(inline) == 1
    np.testing.assert_array_equal(few.images, again.images)

    more = load_pool(tmp_path, "train", 30)
    assert len(more) == 30
    assert [p.name for p in inline[1:]] == ["train-000.npz", "train-001.npz", "train-002.npz"]
    np.testing.assert_array_equal(more.images[:8], few.images)
    np.testing.assert_array_equal(more.captions[:8], few.captions)
    np.testing.assert_allclose(more.scores[:8], few.scores, atol=1e-4)
    assert len(np.unique(more.images.reshape(30, -1), axis=0)) == 30


def test_only_the_content_judge_sees_held_out_captions(tmp_path: Path, inline: list[Path]) -> None:
    held_out = {CAPTIONS.index(c) for c in HELD_OUT_CAPTIONS}
    for name in ("train", "dev", "test"):
        assert not held_out & set(load_pool(tmp_path, name, 24).captions)
    assert held_out & set(load_pool(tmp_path, "content", 24).captions)


def test_pools_share_no_picture(tmp_path: Path, inline: list[Path]) -> None:
    images = np.concatenate([load_pool(tmp_path, n, 8).images for n in ("train", "dev", "test")])
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24


@pytest.fixture(scope="module")
def pool() -> Pool:
    return small_pool(60, captions=5)


def test_pairs_share_a_caption_and_are_two_pictures(pool: Pool) -> None:
    tastes = people("train", 40)
    preferred, rejected = PairSampler(pool).draw(tastes, 9, np.random.default_rng(0))
    assert preferred.shape == rejected.shape == (40, 9)
    np.testing.assert_array_equal(pool.captions[preferred], pool.captions[rejected])
    assert (preferred != rejected).all()
    assert set(preferred.ravel()) | set(rejected.ravel()) == set(range(60))


def test_people_choose_by_their_own_taste(pool: Pool) -> None:
    tastes = people("train", 200)
    preferred, rejected = PairSampler(pool).draw(tastes, 20, np.random.default_rng(1))

    def agreement(who: np.ndarray) -> float:
        better = tastes[who].reward(pool.scores[preferred]) > tastes[who].reward(
            pool.scores[rejected]
        )
        return float(better.mean())

    assert agreement(np.arange(200)) > 0.82
    assert agreement(np.roll(np.arange(200), 1)) < 0.62


def test_a_caption_with_one_picture_has_no_pair(pool: Pool) -> None:
    lonely = Pool(pool.images[:11], pool.captions[:11], pool.scores[:11])  # captions 1-4 twice
    preferred, rejected = PairSampler(lonely).draw(people("dev", 50), 4, np.random.default_rng(2))
    counts = np.bincount(lonely.captions)
    assert (counts[lonely.captions[preferred]] >= 2).all()
    assert (preferred != rejected).all()
