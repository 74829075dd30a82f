"""The comparison at its smallest: the real release, drawing in a few steps; a few people, and one
step of training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ppd_serve.release import load_release, write_release
from ppd_serve.settings import STUDIO
from training import run
from training.__main__ import app
from training.comparison import synthetic_users
from training.comparison.methods import Arm, compare_methods, methods_markdown
from training.comparison.runs import begin
from training.comparison.style import compare_style, painted, style_markdown
from training.comparison.synthetic_users import (
    compare_synthetic_users,
    gains,
    one_reward_each,
    synthetic_markdown,
    their_choices,
)
from training.data import studio
from training.data.judge import scores
from training.data.pool import load_pool
from training.data.world import AXES, CAPTIONS
from training.evaluate import interpolation
from training.evaluate.content import PARTS
from training.evaluate.studio import Outcome, Panel
from training.stage import OtherRun

POOL = 300


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "studio"
    shutil.copytree(STUDIO, path)
    named = load_release(path).manifest
    few_steps = {"defaults": replace(named.defaults, steps=4)}
    write_release(path, named.model_copy(update=few_steps))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def a_small_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (studio, synthetic_users):
        monkeypatch.setattr(module, "PICTURES", {"train": POOL, "dev": POOL})
    monkeypatch.setattr(studio, "PEOPLE", {"train": 12, "dev": 4})
    monkeypatch.setattr(synthetic_users, "_PAIRS", {"train": 12, "dev": 4})
    monkeypatch.setattr(interpolation, "PICTURES", 1)
    monkeypatch.setattr(run, "HELD_OUT_BATCHES", (1, 1))


@pytest.mark.slow
def test_methods_side_by_side(
    release: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = (Arm("kto", "none"), Arm("dpo", "user"))

    def compared() -> dict:
        return compare_methods(
            release, tmp_path, work, split="dev", users=3, seeds=2, steps=1, arms=arms,
            pool_size=POOL,
        )  # fmt: skip

    report = compared()
    assert set(report["arms"]) == {"kto-none", "dpo-user"} and set(report["ppd_minus"]) == {
        "kto-none"
    }
    for row in report["arms"].values():
        assert row["win_rate"]["count"] == 2 * 3 and len(row["by_seed"]) == 2
        pooled = np.mean([seed["value"] for seed in row["by_seed"]])
        assert row["win_rate"]["value"] == pytest.approx(pooled)
    page = methods_markdown(report)
    assert "| **PPD** (dpo-user) |" in page and "| kto-none |" in page

    rates = {name: row["recipe"]["learning_rate"] for name, row in report["arms"].items()}
    assert rates == {"kto-none": 1e-4, "dpo-user": 1e-3}

    # All of it is kept: a second call neither trains nor draws.
    monkeypatch.setattr("training.comparison.runs.draw", None)
    monkeypatch.setattr("training.comparison.runs.train", None)
    assert compared() == report

    # But not what was trained otherwise.
    told = tmp_path / "kto-none-0" / "report.json"
    told.write_text(told.read_text().replace('"learning_rate": 0.0001', '"learning_rate": 0.001'))
    with pytest.raises(OtherRun, match="another recipe"):
        compared()


@pytest.mark.slow
def test_pictures_of_another_panel_are_not_taken(release: Path, work: Path, tmp_path: Path) -> None:
    def compared(users: int, split: str = "dev") -> dict:
        return compare_methods(
            release, tmp_path, work, split=split, users=users, seeds=1, steps=1, arms=(),
            pool_size=POOL,
        )  # fmt: skip

    compared(2)
    with pytest.raises(OtherRun, match="begun with another users; take another --out"):
        compared(3)
    with pytest.raises(OtherRun, match="begun with another split"):
        compared(2, "test")


@pytest.mark.parametrize("what", ["methods", "synthetic-users", "style"])
def test_a_directory_of_another_comparison_is_refused(tmp_path: Path, what: str) -> None:
    begin(tmp_path, "another", load_release(STUDIO), split="test")
    found = CliRunner().invoke(app, ["compare", "--what", what, "--out", str(tmp_path)])
    assert found.exit_code == 2 and "begun" in found.output and "--out" in found.output


@pytest.mark.slow
def test_synthetic_users_want_one_thing_each(release: Path, work: Path, tmp_path: Path) -> None:
    made = their_choices(load_release(release), work, "dev")
    judged = load_pool(work / "pool", "dev", POOL).scores
    better = judged[made.preferred] - judged[made.rejected]
    own = better[np.arange(len(made)), made.user]
    assert made.users == len(AXES) and (own > 0).mean() > 0.7
    assert np.linalg.matrix_rank(made.readings.reshape(len(AXES), -1)) == len(AXES)

    report = compare_synthetic_users(
        release, tmp_path, work, split="dev", pictures=1, steps=1, pool_size=POOL
    )
    assert set(report["gains"]) == {"sft", "dpo", "ppd"}
    assert report["between"]["pairs"] == 4
    assert "| warmth |" in synthetic_markdown(report)
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.slow
def test_one_style_for_everybody(release: Path, work: Path, tmp_path: Path) -> None:
    report = compare_style(
        release, tmp_path, work, split="dev", pictures=8, steps=1, pool_size=POOL
    )
    assert set(report["alignment"]) == {"base", "sft", "dpo", "kto", "rpo", "rpo-inside"}
    for row in report["alignment"].values():
        assert row["distance"] > row["floor"] > 0 and row["count"] == 8
    right = np.load(tmp_path / "dpo" / "panel.npz")["content"][:, PARTS.index("subject")]
    assert report["subject_right"]["dpo"] == right.mean()
    assert "| rpo-inside |" in style_markdown(report)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 128 and sheet.height > 8 * 128


def test_a_painted_style_is_near_itself() -> None:
    captions = np.arange(40) % len(CAPTIONS)
    one, other = (scores(painted(captions, seed), [CAPTIONS[c] for c in captions])
                  for seed in (1, 2))  # fmt: skip
    assert np.abs(one.mean(0) - other.mean(0)).max() < 0.4
    wants_outline = one[:, AXES.index("outline")]
    assert wants_outline.mean() > 0.5 and wants_outline.std() < 1


def test_users_who_gain_unlike_each_other_widen_the_interval_of_all() -> None:
    """Half of the users gain 1 and half nothing, all their pictures alike."""
    tastes = one_reward_each(50)
    panel = cast(Panel, SimpleNamespace(tastes=tastes))
    wants = tastes.weight.argmax(1)
    rise = (wants % 2).astype(np.float32)
    base, drawn = (cast(Outcome, SimpleNamespace(reward=x)) for x in (np.zeros_like(rise), rise))
    found = gains(drawn, base, panel)
    assert found["warmth"] == {"mean": 0, "low": 0, "high": 0}
    assert found["all"]["mean"] == 0.5
    assert found["all"]["low"] < 0.2 and found["all"]["high"] > 0.8


def test_each_wants_their_own_axis() -> None:
    eight = one_reward_each(2)
    judged = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    np.testing.assert_allclose(eight.reward(judged), judged[np.arange(16), np.arange(16) % 8])
