"""People who agree in part."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.shared_taste import with_shared_taste
from training.data.users import people


def agreement(share: float) -> float:
    """Chance that two people like the same of two pictures."""
    scores = np.random.default_rng(0).standard_normal((1, 400, 2, 8)).astype(np.float32)
    rewards = with_shared_taste(people("dev", 200), share).reward(scores)
    first = (rewards[..., 0] > rewards[..., 1]).mean(0)
    return float((first**2 + (1 - first) ** 2).mean())


def test_who_shares_nothing_is_as_they_were() -> None:
    own, same = people("dev", 50), with_shared_taste(people("dev", 50), 0)
    np.testing.assert_array_equal(same.weight, own.weight)
    np.testing.assert_array_equal(same.curvature, own.curvature)


def test_the_more_is_shared_the_more_they_agree() -> None:
    rising = [agreement(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert rising == sorted(rising)
    assert rising[0] < 0.55 and rising[-1] == pytest.approx(1)


def test_everybody_likes_what_most_lean_to() -> None:
    everybody = with_shared_taste(people("dev", 3), 1).weight
    most = people("train", 2000).weight.mean(0)
    np.testing.assert_array_equal(everybody[0], everybody[1])
    assert np.linalg.norm(everybody[0]) == pytest.approx(1)
    assert everybody[0] @ most == pytest.approx(np.linalg.norm(most), rel=1e-5)
