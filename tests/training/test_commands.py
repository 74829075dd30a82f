"""From a file of choices to a served release, by the commands of the README, on a tiny release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ppd_serve.release import load_release
from tests.tiny_release import make_tiny_release
from tests.training.shards import row, write_shard
from tests.training.studio import small_pool
from training.__main__ import app
from training.data.choice_set import ChoiceSet
from training.data.pool import PairSampler
from training.data.rows import studio_rows, write_rows
from training.data.users import people

PEOPLE, PAIRS = 60, 9


def called(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_release(tmp_path_factory.mktemp("tiny")).path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty people's nine choices, and three rows that are none."""
    pool = small_pool(500)  # so many that some were never liked
    drawn = PairSampler(pool).draw(people("train", PEOPLE), PAIRS, np.random.default_rng(0))
    made = list(studio_rows(pool, *drawn))
    made[3]["jpg_0"] = b"not a picture"
    made[13]["label_0"] = made[13]["label_1"] = 0.5
    made[23]["has_label"] = False
    path = tmp_path_factory.mktemp("rows") / "mine.parquet"
    write_rows(path, made)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, rows: Path, release: Path) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    said = called("prepare", "--rows", rows, "--release", release, "--out", out)
    assert "broken picture 1" in said and "tie 1" in said and "no label 1" in said
    return out


@pytest.mark.slow
def test_prepared_choices_are_whole(data: Path, release: Path) -> None:
    train, dev = (ChoiceSet.load(data / split) for split in ("train", "dev"))
    assert train.users + dev.users <= PEOPLE and dev.users > 0
    assert train.about["people"] == train.users
    # Nine choices are two readings of four, and one that nobody has read.
    whole = np.flatnonzero(np.bincount(train.user) == PAIRS)
    for user in whole[:5]:
        own = train.read_in[train.user == user]
        assert sorted(np.unique(own, return_counts=True)[1]) == [1, 4, 4] and -1 in own
    encoder, backbone = load_release(release).load_encoder(), load_release(release).load_backbone()
    assert train.embedding_shape == (encoder.rows, encoder.dim)
    assert train.latents.shape[1:] == backbone.latent_shape(64, 64)
    assert np.isfinite(train.latents).all() and train.readings.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["none", "user"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "rpo"])
def test_every_objective_runs_on_a_prepared_file(
    tmp_path: Path, data: Path, release: Path, objective: str, conditioning: str
) -> None:
    called(
        "train", "--objective", objective, "--conditioning", conditioning, "--data", data,
        "--recipe", "studio-ppd",
        "--release", release, "--out", tmp_path, "--steps", 2, "--batch", 4,
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    held_out = report["held_out"]["improvement"]
    assert held_out["low"] <= held_out["mean"] <= held_out["high"]
    assert report["recipe"]["objective"] == objective
    assert (tmp_path / "ip_adapter.safetensors").exists()
    if conditioning == "user":
        made = load_release(tmp_path / "release")
        made.check()
        assert made.version == f"1.0+{objective}-user"
        assert made.load_adapter(made.load_backbone()) is not None
        assert load_release(release).load_questioner() is not None
        assert made.load_questioner() is None  # how its pictures answer is not known yet


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "written"), [("lora", "pytorch_lora_weights.safetensors"), ("full", "denoiser")]
)
def test_weights_and_utility_are_options(
    tmp_path: Path, data: Path, release: Path, weights: str, written: str
) -> None:
    called(
        "train", "--objective", "kto", "--conditioning", "none", "--data", data,
        "--recipe", "studio-ppd",
        "--release", release, "--out", tmp_path, "--steps", 1, "--batch", 4,
        "--weights", weights, "--utility", "loss_averse", "--set", "learning_rate=3e-4",
        "--set", "betas=[0.5,0.6]", "--set", "optimizer=adafactor",
    )  # fmt: skip
    used = json.loads((tmp_path / "report.json").read_text())["recipe"]
    assert (used["learning_rate"], used["betas"]) == (3e-4, [0.5, 0.6])
    assert used["optimizer"] == "adafactor"
    assert (used["weights"], used["utility"]) == (weights, "loss_averse")
    assert (tmp_path / written).exists() and not (tmp_path / "ip_adapter.safetensors").exists()


@pytest.mark.slow
def test_data_of_another_release_is_refused(
    tmp_path: Path, data: Path, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An adapter for embeddings that the release does not make would know nobody."""
    other = make_tiny_release(tmp_path_factory.mktemp("other"), seed=5).path

    def said(conditioning: str, release: Path) -> str:
        found = CliRunner().invoke(app, [
            "train", "--objective", "dpo", "--conditioning", conditioning, "--data", str(data),
            "--recipe", "studio-ppd", "--release", str(release), "--out", str(tmp_path),
            "--steps", "1", "--batch", "2",
        ])  # fmt: skip
        assert found.exit_code == 2, found.output
        return " ".join(found.output.replace("│", " ").split())

    for conditioning in ("user", "none"):
        assert "whose base is another" in said(conditioning, other)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_same_command_is_a_ray_train_job(tmp_path: Path, data: Path, release: Path) -> None:
    """Two workers end where one process ends."""
    arguments = (
        "train", "--objective", "rpo", "--conditioning", "user", "--data", data,
        "--recipe", "studio-ppd",
        "--release", release, "--steps", 4, "--batch", 4,
    )  # fmt: skip
    called(*arguments, "--out", tmp_path / "one")
    called(*arguments, "--out", tmp_path / "two", "--workers", 2)
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text())["held_out"]["improvement"]
        for name in ("one", "two")
    )
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("command", ["prepare", "fit-questions", "fit-transform", "judge-pictures"])
def test_rows_that_are_none_are_named(tmp_path: Path, release: Path, command: str) -> None:
    """Before anything is loaded or a set that is there is touched."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "about.json").write_text("{}")
    lacking = write_shard(tmp_path / "rows.parquet", [row(n, jpg_1=None) for n in range(4)])
    table = pq.read_table(lacking).drop_columns(["jpg_1"])
    pq.write_table(table, lacking)
    into = [] if command.startswith("fit") else ["--out", str(tmp_path)]
    into += ["--scorer", "pickscore=nowhere"] if command.startswith("judge") else []
    for place, said in (
        (lacking, "no column jpg_1"),
        (tmp_path / "x.jsonl", "cannot be read as Parquet files"),
    ):
        found = CliRunner().invoke(
            app, [command, "--rows", str(place), "--release", str(release), *into]
        )
        assert found.exit_code == 2, found.output
        assert said in " ".join(found.output.replace("│", " ").split())
    assert (tmp_path / "train" / "about.json").exists()


def test_a_wrong_word_is_named(tmp_path: Path) -> None:
    def said(*more: str) -> str:
        found = CliRunner().invoke(
            app,
            [
                "train",
                "--objective",
                "dpo",
                "--conditioning",
                "user",
                "--out",
                str(tmp_path),
                *more,
            ],
        )
        assert found.exit_code == 2
        return " ".join(found.output.replace("│", " ").split())

    assert "studio-ppd" in said("--recipe", "studio")
    other = make_tiny_release(tmp_path / "release").path
    assert "constants of tiny are not known here" in said("--release", str(other))
    assert "steps" in said("--steps", "0")
    assert "prepare" in said("--data", str(tmp_path / "nowhere"))
    assert "lora" in said("--weights", "lore")
    assert "utility: only for the objective kto" in said("--utility", "risk_seeking")
    assert "24 is no multiple of micro_batch" in said("--micro-batch", "7")
    assert "learning_rat" in said("--set", "learning_rat=1")
    assert "beta" in said("--set", "beta=-1")
    assert "not NAME=VALUE" in said("--set", "beta")
    assert "an option of its own" in said("--set", "conditioning=none")
