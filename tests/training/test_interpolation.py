"""Between two people: curves that follow the share, curves that do not, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.studio import small_pool
from training.evaluate.interpolation import PICTURES, SHARES, Blends, blends, interpolation
from training.evaluate.studio import new_panel


@pytest.fixture(scope="module")
def drawn() -> Blends:
    panel = new_panel("dev", 7, small_pool(24))
    return blends(panel, np.arange(7, dtype=np.float32).reshape(7, 1, 1), 9, seed=100)


def of_share(drawn: Blends, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards that rise and fall with the share, and some noise."""
    rng, (pairs, _, pictures) = np.random.default_rng(seed), drawn.shape
    share = np.tile(np.repeat(SHARES, pictures), pairs)
    first, second = noise * rng.normal(size=(2, len(share)))
    return (share + first).astype(np.float32), (1 - share + second).astype(np.float32)


def test_a_pair_is_drawn_the_same_prompts_and_seeds_at_every_share(drawn: Blends) -> None:
    assert drawn.shape == (3, len(SHARES), PICTURES) == (3, 5, 16)  # seven people make three pairs
    assert len(drawn.panel) == len(drawn.users) == 3 * 5 * 16
    seeds = drawn.panel.seeds.reshape(drawn.shape)
    captions = drawn.panel.captions.reshape(drawn.shape)
    assert (seeds == seeds[:, :1]).all() and (captions == captions[:, :1]).all()
    assert len(np.unique(seeds)) == 3 * 16 and len(np.unique(captions[:, 0])) > 3
    (a, share), (b, rest) = drawn.users[(1 * 5 + 3) * 16]  # second pair, fourth share
    assert (float(a.item()), share) == (2.0, 0.75) and (float(b.item()), rest) == (3.0, 0.25)
    assert drawn.second[(1 * 5 + 3) * 16] == 3


def test_rewards_that_follow_the_share_are_told_so(drawn: Blends) -> None:
    found = interpolation(drawn, *of_share(drawn, 0.1))
    assert found["pairs"] == 3 and found["pictures_a_point"] == 16
    assert found["spearman"] == [1.0, 1.0, 1.0] == found["spearman_of_the_other"]
    assert found["every_step_increases"] is True
    np.testing.assert_allclose(found["mean_reward"], SHARES, atol=0.1)
    np.testing.assert_allclose(found["mean_reward_of_the_other"], SHARES[::-1], atol=0.1)


def test_one_pair_that_goes_back_is_seen_in_its_own_number(drawn: Blends) -> None:
    first, second = of_share(drawn, 0.0)
    curves = first.reshape(drawn.shape)
    curves[0] = -curves[0]
    found = interpolation(drawn, first, second)
    assert found["spearman"] == [1.0, 0.0, 1.0]  # -1, 1, 1
    assert found["every_step_increases"] is True  # on average


def test_a_step_back_of_the_mean_is_seen(drawn: Blends) -> None:
    for which in (0, 1):
        rewards = of_share(drawn, 0.0)
        curves = rewards[which].reshape(drawn.shape)
        curves[:, [1, 2]] = curves[:, [2, 1]]
        found = interpolation(drawn, *rewards)
        assert found["every_step_increases"] is False
        assert found[("spearman", "spearman_of_the_other")[which]][0] == pytest.approx(0.9)


def test_a_flat_curve_correlates_with_nothing(drawn: Blends) -> None:
    flat = np.zeros(len(drawn.panel), np.float32)
    found = interpolation(drawn, flat, flat)
    assert found["spearman"] == [0.0, 0.0, 0.0] and not found["every_step_increases"]
