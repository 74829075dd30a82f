"""A run of hours does not end in an error because few people were left to measure it on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ppd_serve.release import load_release
from tests.tiny_release import make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from tests.training.shards import row, write_shard
from training.__main__ import app
from training.policy import Policy
from training.recipes import Objective, Recipe
from training.run import Job, held_out


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_release(tmp_path_factory.mktemp("release")).path


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_there_is_no_figure_then(tmp_path: Path, objective: Objective, release: Path) -> None:
    how = Recipe(objective=objective, conditioning="user", batch=4)
    backbone = planted_backbone()
    choices = planted_choices(backbone, people=2, pairs=4)
    policy = Policy(
        backbone, weights="adapter", conditioning="user", embedding_shape=choices.embedding_shape
    )
    job = Job(how, str(tmp_path / "data"), release, tmp_path / "out", tmp_path / "work")
    assert held_out(job, load_release(release), policy) is None  # `prepare` had nobody for dev

    if objective == "kto":  # and here they like, by their own word, whatever they saw
        seen = np.stack([choices.user, choices.prompt, choices.rejected, np.ones(4, np.int64)], 1)
        dataclasses.replace(choices, judged=seen).save(tmp_path / "data" / "dev")
        assert held_out(job, load_release(release), policy) is None


@pytest.mark.parametrize("user", ["lisa", "8"])
def test_a_file_of_people_who_are_all_kept_apart_says_so(
    tmp_path: Path, user: str, release: Path
) -> None:
    """One in ten is for dev or test, also of one."""
    rows = write_shard(tmp_path / "rows.parquet", [row(n, user=user) for n in range(8)])
    found = CliRunner().invoke(app, [
        "prepare", "--rows", str(rows), "--release", str(release), "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    assert found.exit_code == 2
    said = " ".join(found.output.replace("│", " ").split())
    assert "not one choice to learn from" in said and "1 user is in another split" in said
