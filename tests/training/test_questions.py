"""Fitting a questioner from choices, putting it into a release, and judging what it asks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.picture import encode_picture
from ppd_serve.diffusion.request import User
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.release import Release, load_release
from tests.tiny_encoder import make_tiny_encoder
from tests.tiny_release import make_tiny_release
from tests.training.studio import small_pool
from training.__main__ import app
from training.data.choices import Choice, choice_of
from training.data.pool import PairSampler
from training.data.rows import studio_rows, write_rows
from training.data.users import people
from training.data.world import HELD_OUT_CAPTIONS
from training.evaluate.asking import (
    ASKED,
    DRAWN,
    OPPOSITE,
    PAINTED,
    asking_markdown,
    compare_questions,
)
from training.questions import FILE, measure_response, states_of_choices

STUDIO = Path("ppd_serve/assets/studio")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load(make_tiny_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_tiny_release(tmp_path / "release")


def choices(users: int, each: int) -> Iterator[Choice]:
    pool = small_pool(24)
    drawn = PairSampler(pool).draw(people("train", users), each, np.random.default_rng(0))
    return map(choice_of, studio_rows(pool, *drawn))


def test_the_first_choices_of_those_who_made_enough(encoder: Encoder) -> None:
    every = list(choices(3, 4))
    some = [c for k, c in enumerate(every) if k != 4]  # the second person made one less
    states, preferred, rejected = states_of_choices(encoder, some, 4)
    assert preferred.shape == rejected.shape == (2, 4)
    third = [c for c in every if c.user == every[-1].user]
    np.testing.assert_array_equal(states[preferred[1, 2]], encoder.look(third[2].preferred))
    np.testing.assert_array_equal(states[rejected[1, 0]], encoder.look(third[0].rejected))
    seen = {p for c in some for p in (c.preferred_id, c.rejected_id)}
    assert len(states) == len(seen)  # every picture once


def test_too_few_choices_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="nobody made 5 choices"):
        states_of_choices(encoder, choices(2, 4), 5)


@pytest.mark.slow
def test_the_shipped_response_is_what_drawing_does() -> None:
    """It foresees how far apart the pictures of questions come out, of prompts and seeds that it
    was not measured on."""
    release = load_release(STUDIO)
    questioner, encoder = release.load_questioner(), release.load_encoder()
    assert questioner is not None
    drawn = np.random.default_rng(8).standard_normal((12, 1, 8)).astype(np.float32)
    drawn *= np.sqrt(8) / np.linalg.norm(drawn, axis=2, keepdims=True)
    backbone = release.load_backbone()
    with Engine(backbone, release.load_adapter(backbone), max_rows=8, embedding_rows=1) as engine:
        tickets = engine.submit_all([
            release.defaults.request(str(HELD_OUT_CAPTIONS[k]), seed=k, users=(User(side * e),))
            for k, e in enumerate(drawn) for side in (1, -1)
        ])  # fmt: skip
        seen = np.stack([encoder.look(encode_picture(t.result().pixels)) for t in tickets])
    features = questioner.choices.features(seen)
    moved = features[::2] - features[1::2]
    foreseen = 2 * drawn[:, 0] @ questioner.response[0]
    assert np.corrcoef(moved.ravel(), foreseen.ravel())[0, 1] > 0.7


def test_too_few_pictures_are_refused(release: Release) -> None:
    questioner = release.load_questioner()
    assert questioner is not None
    with pytest.raises(ValueError, match="10 pictures cannot tell 24"):
        measure_response(release, release.load_encoder(), questioner.choices, 10, None, "cpu")


def test_the_command_puts_it_into_a_release(release: Release, tmp_path: Path) -> None:
    before = (release.path / FILE).read_bytes()
    pool = small_pool(24)
    drawn = PairSampler(pool).draw(people("train", 12), 4, np.random.default_rng(0))
    write_rows(tmp_path / "rows.parquet", studio_rows(pool, *drawn))
    told = CliRunner().invoke(
        app,
        ["fit-questions", "--rows", str(tmp_path / "rows.parquet"), "--release", str(release.path),
         "--per-user", "4", "--pictures", "48"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    again = load_release(release.path)
    again.check()
    assert (release.path / FILE).read_bytes() != before
    assert again.load_questioner() is not None


@pytest.mark.slow
def test_every_way_of_asking_is_judged(tmp_path: Path) -> None:
    report = compare_questions(
        STUDIO, tmp_path, tmp_path, split="dev", users=3, answers=2, pool_size=120
    )
    assert set(report["ways"]) == {ASKED, OPPOSITE, DRAWN, PAINTED}
    assert all(len(way["answers"]) == 2 for way in report["ways"].values())
    assert len(report["ways"][ASKED]["bits"]) == len(report["ways"][DRAWN]["agreed"]) == 2
    assert [r["other"] for r in report["asked_minus"][DRAWN]] == [1, 2, 2]
    again = compare_questions(
        STUDIO, tmp_path, tmp_path, split="dev", users=3, answers=2, pool_size=120
    )
    assert again == report  # of what was kept
    other = compare_questions(
        STUDIO, tmp_path, tmp_path, split="test", users=3, answers=1, pool_size=120
    )
    first = [r["ways"][PAINTED]["answers"][0]["gain"] for r in (report, other)]
    assert first[0] != first[1]  # other people, not what was kept of these
    page = asking_markdown(report)
    assert "| 2 |" in page and "1 asked − 2" in page


@pytest.mark.slow
def test_a_release_without_questions_cannot_be_judged(tmp_path: Path) -> None:
    shutil.copytree(STUDIO, tmp_path / "release")
    manifest = tmp_path / "release" / "release.json"
    bare = load_release(tmp_path / "release").manifest.model_copy(update={"questions": None})
    manifest.write_text(bare.model_dump_json())
    with pytest.raises(ValueError, match="asks no questions"):
        compare_questions(tmp_path / "release", tmp_path, tmp_path, split="dev", users=2,
                          answers=1, pool_size=120)  # fmt: skip
