"""What was measured on held-out people speaks of people: so does its interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_release import make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from tests.training.test_train import OBJECTIVES, recipe, training
from training.evaluate.implicit import implicit_accuracy
from training.evaluate.statistics import clustered_mean
from training.improvement import improvement
from training.recipes import Objective
from training.run import Job, held_out
from training.train import Errors, PreferenceTraining


def test_an_interval_over_people_is_as_wide_as_people_differ() -> None:
    """Two kinds of people, each a thousand times the same: hardly any doubt over samples."""
    rng = np.random.default_rng(0)
    user = np.tile(np.arange(20), 1000)
    values = np.where(user % 2, 1.0, -1.0) + 0.1 * rng.standard_normal(len(user))
    mean, low, high = clustered_mean(values, user)
    assert mean == pytest.approx(0, abs=0.01)
    # The mean of 20 coins has a standard error of 1/√20.
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(20), rel=0.1)


def test_what_a_batch_shares_counts_too() -> None:
    rng = np.random.default_rng(0)
    user, batch = np.tile(np.arange(500), 8), np.repeat(np.arange(8), 500)
    values = rng.standard_normal(8)[batch]  # everybody gained what the batch's noise gave
    alone = clustered_mean(values, user)
    crossed = clustered_mean(values, user, batch)
    assert alone[2] - alone[1] == pytest.approx(0, abs=1e-9)
    assert crossed[2] - crossed[1] > 0.5 and crossed[0] == pytest.approx(alone[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sample_counts_for_whom_it_is_of(objective: Objective) -> None:
    run = training(recipe(objective, "user"))
    choices, samples = run.choices, run.samples(0, range(8))
    for user, pictures in zip(samples.user, samples.pictures, strict=True):
        own = choices.user == user
        assert set(pictures) <= {*choices.preferred[own], *choices.rejected[own]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_people_who_differ_leave_it_open_between_them(
    tmp_path: Path, objective: Objective
) -> None:
    """One likes what is dark, the other what is bright, and the policy cannot tell them apart."""
    run = training(recipe(objective, "none"), awake=True)
    unseen = planted_choices(planted_backbone(), people=2, pairs=200)
    unseen.save(tmp_path / "data" / "dev")
    release = make_tiny_release(tmp_path / "release")
    job = Job(run.recipe, str(tmp_path / "data"), release.path, tmp_path, tmp_path)
    found = held_out(job, release, run.policy)
    assert found is not None and found["people"] == 2

    gains = improvement(PreferenceTraining(run.recipe, unseen, run.policy), found["batches"])
    if objective == "sft":
        assert gains.right is None and "implicit_accuracy" not in found
    else:
        right, told = gains.right, found["implicit_accuracy"]
        shares = [right[gains.user == user].mean() for user in (0, 1)]
        assert told["mean"] == pytest.approx(right.mean())
        assert told["low"] <= min(shares) + 1e-9 and max(shares) - 1e-9 <= told["high"]
        assert 0 <= told["low"] < told["high"] <= 1
    each = [gains.gain[gains.user == user].mean() for user in (0, 1)]
    interval = found["improvement"]
    assert interval["mean"] == pytest.approx(gains.gain.mean())
    assert interval["low"] <= min(each) + 1e-9 and max(each) - 1e-9 <= interval["high"]
    assert max(each) > min(each)


@pytest.mark.parametrize(("better", "expected"), [(-0.1, 1.0), (0.1, 0.0)])
def test_the_gate_counts_who_is_sided_with(better: float, expected: float) -> None:
    """``better``: the policy's error on the preferred, less the base's."""
    run = training(recipe("dpo", "user"))
    r = torch.rand(8, 2)
    errors = Errors(r + torch.tensor([better, 0.0]), r, torch.ones(8))
    run.errors = lambda samples: errors  # type: ignore[method-assign]
    found = implicit_accuracy(run, pairs=24, draws=2)
    assert (found.value, found.count) == (expected, 24) and found.low < found.high


def test_held_out_people_are_all_known(tmp_path: Path) -> None:
    """Some are dropped in training; what is told of others is told of their own embeddings."""
    planted_choices(planted_backbone(), people=4, pairs=40).save(tmp_path / "data" / "dev")
    release, found = make_tiny_release(tmp_path / "release"), []
    for dropped in (0.0, 0.9):
        run = training(recipe("dpo", "user", weights="lora", dropped_users=dropped), awake=True)
        job = Job(run.recipe, str(tmp_path / "data"), release.path, tmp_path, tmp_path)
        found.append(held_out(job, release, run.policy))
    assert found[0] is not None and found[0] == found[1]
    assert found[0]["improvement"]["mean"] != 0


def test_of_one_person_there_is_no_interval(tmp_path: Path) -> None:
    run = training(recipe("dpo", "none"), awake=True)
    planted_choices(planted_backbone(), people=1, pairs=20).save(tmp_path / "data" / "dev")
    release = make_tiny_release(tmp_path / "release")
    job = Job(run.recipe, str(tmp_path / "data"), release.path, tmp_path, tmp_path)
    found = held_out(job, release, run.policy)
    assert found is not None and found["people"] == 1
    assert found["improvement"]["mean"] != 0
    assert found["improvement"]["low"] is None and found["improvement"]["high"] is None
