"""A run of hours does not end in an error because few people were left to measure it on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_release import make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from training.policy import Policy
from training.recipes import Objective, Recipe
from training.run import Job, held_out


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_there_is_no_figure_then(tmp_path: Path, objective: Objective) -> None:
    how = Recipe(objective=objective, conditioning="user", batch=4)
    backbone = planted_backbone()
    choices = planted_choices(backbone, people=2, pairs=4)
    policy = Policy(
        backbone, weights="adapter", conditioning="user", embedding_shape=choices.embedding_shape
    )
    release = make_tiny_release(tmp_path / "release")
    job = Job(how, str(tmp_path / "data"), release.path, tmp_path / "out", tmp_path / "work")
    assert held_out(job, release, policy) is None  # `prepare` had nobody for dev

    if objective == "kto":  # and here they like, by their own word, whatever they saw
        seen = np.stack([choices.user, choices.prompt, choices.rejected, np.ones(4, np.int64)], 1)
        dataclasses.replace(choices, judged=seen).save(tmp_path / "data" / "dev")
        assert held_out(job, release, policy) is None
