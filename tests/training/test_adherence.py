"""What taste costs in content: paired, and with as many pictures as it takes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.studio import small_pool
from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS
from training.evaluate.adherence import content_table, further_rounds
from training.evaluate.content import PARTS
from training.evaluate.studio import Panel, new_panel


@pytest.fixture(scope="module")
def panel() -> Panel:
    return new_panel("dev", 3, small_pool(24))


def test_pictures_right_or_wrong_twice_widen_nothing() -> None:
    """Of 1000 pictures ten are lost in one part: the pairing knows it to about half a point."""
    rng = np.random.default_rng(0)
    base = rng.random((1000, 3)) < 0.8
    lost = np.flatnonzero(base[:, 1])[:10]
    ours = base.copy()
    ours[lost, 1] = False

    table = content_table(ours, base, np.arange(1000))

    same = table[PARTS[0]]["difference"]  # of a thousand nobody lost: of others a few might
    assert same["value"] == 0 and 0 < same["high"] == -same["low"] < 0.004
    found = table[PARTS[1]]["difference"]
    assert found["value"] == pytest.approx(-0.01)
    assert table[PARTS[1]]["minus_base"] == pytest.approx(-0.01)
    assert -0.02 < found["low"] < -0.01 < found["high"] < -0.003
    right = table[PARTS[1]]["right"]
    assert right["high"] - right["low"] > 2 * (found["high"] - found["low"])
    assert table["mean"]["difference"]["value"] == pytest.approx(-0.01 / 3)


def test_pictures_of_one_user_are_one_trial() -> None:
    rng = np.random.default_rng(1)
    lost = np.repeat(rng.random(40) < 0.3, 25)[:, None] & np.ones(3, bool)
    alone, clustered = (
        content_table(~lost, np.ones_like(lost), users)["mean"]["difference"]
        for users in (np.arange(1000), np.repeat(np.arange(40), 25))
    )
    assert alone["value"] == clustered["value"]
    assert clustered["high"] - clustered["low"] > 3 * (alone["high"] - alone["low"])


def test_further_pictures_are_the_users_own_with_new_prompts_and_seeds(panel: Panel) -> None:
    more, users = further_rounds(panel, 8, seed=1)
    assert users.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(more.tastes.weight, panel.tastes.weight[users])
    np.testing.assert_array_equal(more.preferred, panel.preferred[users])
    assert len({*more.seeds.tolist(), *panel.seeds.tolist()}) == 11
    assert {str(CAPTIONS[c]) for c in more.captions} <= {str(c) for c in HELD_OUT_CAPTIONS}
    assert len(set(more.captions.tolist())) > 1
    shorter, _ = further_rounds(panel, 5, seed=1)
    np.testing.assert_array_equal(shorter.captions, more.captions[:5])
    np.testing.assert_array_equal(shorter.seeds, more.seeds[:5])
    assert len(further_rounds(panel, 0, seed=1)[0]) == 0
