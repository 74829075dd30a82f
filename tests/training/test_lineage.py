"""The same ``--out`` goes on with the same run, and with no other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ppd_serve.release import Release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS, make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from training.__main__ import app
from training.data.choice_set import ChoiceSet
from training.lineage import lineage
from training.recipes import Recipe

HOW = Recipe(objective="dpo", conditioning="user", batch=8)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_tiny_release(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def choices() -> ChoiceSet:
    """Of pictures and texts that the tiny release takes."""
    made = planted_choices(planted_backbone())
    rng = np.random.default_rng(0)
    return dataclasses.replace(
        made,
        latents=rng.standard_normal((len(made.latents), 4, 4, 4), np.float32),
        readings=np.resize(made.readings, (len(made.readings), EMBEDDING_ROWS, EMBEDDING_DIM)),
    )


def test_it_is_the_same_however_the_run_is_cut(release: Release, choices: ChoiceSet) -> None:
    elsewhere = HOW.model_copy(update={"micro_batch": 2, "gradient_checkpointing": True})
    same = lineage(HOW, release, choices)
    assert lineage(elsewhere, release, dataclasses.replace(choices, about={"a": 1})) == same
    assert json.loads(json.dumps(same)) == same


def _one_more_of(name: str) -> Callable[[ChoiceSet], ChoiceSet]:
    def changed(choices: ChoiceSet) -> ChoiceSet:
        array = getattr(choices, name).copy()
        array[len(array) // 2 : len(array) // 2 + 8] += 1
        return dataclasses.replace(choices, **{name: array})

    return changed


@pytest.mark.parametrize("name", ["user", "preferred", "read_in", "latents", "readings"])
def test_other_choices_are_another_run(release: Release, choices: ChoiceSet, name: str) -> None:
    before, after = (lineage(HOW, release, c) for c in (choices, _one_more_of(name)(choices)))
    assert [key for key in before if before[key] != after[key]] == ["data"]


def test_another_base_is_another_run(release: Release, choices: ChoiceSet, tmp_path: Path) -> None:
    other = make_tiny_release(tmp_path, seed=1)
    before, after = (lineage(HOW, r, choices) for r in (release, other))
    assert [key for key in before if before[key] != after[key]] == ["release"]


def test_the_command_says_what_differs_and_leaves_everything(
    release: Release, choices: ChoiceSet, tmp_path: Path
) -> None:
    choices.save(tmp_path / "data" / "train")
    out = tmp_path / "out"

    def called(*more: object) -> tuple[int, str]:
        found = CliRunner().invoke(
            app,
            [str(a) for a in (
                "train", "--objective", "dpo", "--conditioning", "user", "--data",
                tmp_path / "data", "--release", release.path, "--out", out, "--steps", 2,
                "--batch", 4, "--recipe", "studio-ppd", *more,
            )],
        )  # fmt: skip
        return found.exit_code, " ".join(found.output.replace("│", " ").split())

    assert called()[0] == 0
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, said = called("--seed", 7)
    assert code == 2 and "seed was 0, is 7" in said and "--out" in said
    _one_more_of("preferred")(choices).save(tmp_path / "data" / "train")
    code, said = called()
    assert code == 2 and "data was" in said
    assert all(path.read_bytes() == before for path, before in kept.items())
    choices.save(tmp_path / "data" / "train")
    assert called("--micro-batch", 2)[0] == 0  # the same run, in smaller forwards
