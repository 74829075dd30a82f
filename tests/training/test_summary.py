"""Figures of pictures whose rewards, content and looks are made up here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.training.studio import small_pool
from training.data.judge import scores
from training.data.world import CAPTIONS
from training.evaluate.studio import Outcome, Panel, new_panel
from training.evaluate.summary import artefacts_told, lead, summarise


@pytest.fixture(scope="module")
def panel() -> Panel:
    return new_panel("dev", 8, small_pool(48))


@pytest.fixture(scope="module")
def base(panel: Panel) -> Outcome:
    """The pool's own pictures, as if they had been drawn."""
    images = panel.pool.images[:8]
    found = scores(images, [CAPTIONS[c] for c in panel.pool.captions[:8]])
    return Outcome(images, found, panel.tastes.reward(found), np.ones((8, 3), bool))


def rewarded(base: Outcome, better: list[int]) -> Outcome:
    """These users' pictures are better than the base's, the others' worse."""
    change = np.full(len(base.reward), -1.0, np.float32)
    change[better] = 2.0
    return replace(base, reward=base.reward + change)


def cut(outcome: Outcome, count: int) -> Outcome:
    return Outcome(*(part[:count] for part in vars(outcome).values()))


def test_conditions_are_told_against_the_base_of_their_own_users(
    panel: Panel, base: Outcome
) -> None:
    personal, wrong = rewarded(base, [*range(7)]), rewarded(base, [0, 1])
    side = {
        "population": cut(rewarded(base, [0, 1, 2]), 4),
        "true taste": cut(replace(base, reward=base.reward + 4), 4),
    }
    report = summarise({"base": base, "personal": personal, "mismatched": wrong} | side, panel)

    rates = {n: (c["win_rate"]["value"], c["win_rate"]["count"])
             for n, c in report["conditions"].items()}  # fmt: skip
    assert rates == {
        "personal": (7 / 8, 8), "mismatched": (2 / 8, 8), "population": (3 / 4, 4),
        "true taste": (1.0, 4),
    }  # fmt: skip
    assert report["personal_minus"]["mismatched"]["value"] == pytest.approx(5 / 8)
    assert report["personal_minus"]["population"]["value"] == pytest.approx(1 / 4)
    assert report["personal_minus"]["population"]["count"] == 4
    assert report["personal_beats_mismatched"]["value"] == (5 + 0.5 * 3) / 8
    assert report["share_of_true_taste_gain"] == pytest.approx(2 / 4)
    spread = base.reward.std()
    gain = report["conditions"]["personal"]["gain_in_base_spreads"]["mean"]
    assert gain == pytest.approx((7 * 2 - 1) / 8 / spread, rel=1e-5)


def test_a_lead_over_who_wins_as_often_elsewhere_is_none_but_wide(base: Outcome) -> None:
    found = lead(rewarded(base, [0, 1, 2, 3]), rewarded(base, [4, 5, 6, 7]), base)
    assert found["value"] == 0 and found["low"] < -0.3 and found["high"] > 0.3
    same = lead(rewarded(base, [0, 1]), rewarded(base, [0, 1]), base)  # of whom others may differ
    assert same["value"] == 0 and found["low"] < same["low"] < 0 < same["high"] < found["high"]


def test_artefacts_of_the_personal_pictures_are_set_beside_real_ones(
    panel: Panel, base: Outcome
) -> None:
    clean = artefacts_told(panel, base, base)
    assert clean["personal_minus_base"] == {"mean": 0, "low": 0, "high": 0}
    assert clean["real_of_like_style"] == pytest.approx(clean["base"])  # the very same pictures
    noise = np.random.default_rng(0).normal(size=base.images.shape)
    spoilt = np.clip(base.images + 12 * noise, 0, 255).astype(np.uint8)
    found = artefacts_told(panel, base, replace(base, images=spoilt))
    assert found["personal_minus_base"]["low"] > 1
    assert found["real_of_like_style"] == pytest.approx(clean["base"])
