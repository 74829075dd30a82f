"""One command fits a release's transform on a file of choices, and puts it there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ppd_serve.errors import ReleaseError
from ppd_serve.release import Release, Source, load_release, write_release
from tests.tiny_release import make_tiny_release
from tests.training.studio import small_pool
from tests.twins.encoders import LAYERS, WIDTH, make_clip, make_vlm
from training.__main__ import app
from training.data.choices import Choice, choice_of
from training.data.pool import PairSampler
from training.data.readings import split_of
from training.data.rows import studio_rows, write_rows
from training.data.users import people
from training.transform import encoder_to_fit, fit, states_of_people


def rows(users: int, each: int) -> list:
    pool = small_pool(24)
    drawn = PairSampler(pool).draw(people("train", users), each, np.random.default_rng(0))
    return list(studio_rows(pool, *drawn))


def choices(users: int, each: int) -> Iterator[Choice]:
    return map(choice_of, rows(users, each))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """With a VLM and nothing that was trained yet."""
    made = make_tiny_release(tmp_path / "release")
    shutil.rmtree(made.path / "encoder")
    make_vlm("smolvlm", made.path / "encoder", position="before_profile", layers="all")
    bare = {"adapter": None, "questions": None, "embedding_space": None, "embedding_shape": None}
    return write_release(made.path, made.manifest.model_copy(update=bare))


def test_the_first_readings_of_those_who_chose_enough(release: Release) -> None:
    encoder = encoder_to_fit(release)
    every = list(choices(5, 9))
    some = [c for k, c in enumerate(every) if k % 9 < 8 or c.user != every[0].user]
    short = [c for k, c in enumerate(some) if not (9 <= k < 11)]  # the second made seven
    states = states_of_people(encoder, sorted(short, key=lambda c: c.prompt), 2)
    assert states.shape == (4, 2, LAYERS, WIDTH)
    in_order = states_of_people(encoder, short, 2)
    first = [choice.pair for choice in short if choice.user == every[0].user]
    np.testing.assert_allclose(in_order[0, 1], encoder.embed(first[4:8]).embedding, atol=1e-4)
    with pytest.raises(ValueError, match="nobody made 12 choices"):
        states_of_people(encoder, choices(2, 8), 3)


def test_the_command_puts_it_into_a_release(release: Release, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", rows(16, 8))
    told = CliRunner().invoke(
        app,
        ["fit-transform", "--rows", str(tmp_path / "rows.parquet"), "--directions", "5",
         "--release", str(release.path)],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    known = sum(split_of(str(user)) == "train" for user in range(16))
    assert f"{known} people's choices" in told.output
    again = load_release(release.path)
    again.check()
    encoder = again.load_encoder()
    assert encoder.space == again.embedding_space
    assert (encoder.rows, encoder.dim) == again.manifest.embedding_shape == (LAYERS, 5)
    mine = [c.pair for c in choices(16, 8) if split_of(c.user) == "train"]
    readings = [encoder.embed(mine[k : k + 4]).embedding for k in range(0, len(mine), 4)]
    fitted_on = np.stack(readings)  # what it was fitted on: centred, of unit variance
    np.testing.assert_allclose(fitted_on.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(fitted_on.std(0), 1, atol=1e-3)


def test_fewer_bits_have_a_transform_of_their_own(release: Release, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_rows(tmp_path / "rows.parquet", rows(8, 8))
    told = CliRunner().invoke(
        app,
        ["fit-transform", "--rows", str(tmp_path / "rows.parquet"), "--directions", "3",
         "--release", str(release.path), "--quantisation", "4bit"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    again = load_release(release.path)
    assert again.load_encoder(quantisation="4bit").space == again.embedding_space
    assert again.load_encoder().space != again.embedding_space


def test_what_was_trained_on_other_embeddings_is_not_left_behind(tmp_path: Path) -> None:
    trained = make_tiny_release(tmp_path / "trained")
    before = (trained.path / "encoder" / "transform.safetensors").read_bytes()
    for kept in ({}, {"adapter": None}, {"questions": None}):
        manifest = trained.manifest.model_copy(update=kept)
        with pytest.raises(ReleaseError, match="made for the embeddings"):
            encoder_to_fit(write_release(trained.path, manifest))
    assert (trained.path / "encoder" / "transform.safetensors").read_bytes() == before


def test_a_release_needs_a_vlm_of_its_own(release: Release) -> None:
    for encoder in (None, Source(hub_id="some/vlm", revision="abc")):
        manifest = release.manifest.model_copy(update={"encoder": encoder})
        with pytest.raises(ReleaseError, match="no encoder directory"):
            encoder_to_fit(write_release(release.path, manifest))
    make_clip(release.path / "clip")
    manifest = release.manifest.model_copy(update={"encoder": Source(path="clip")})
    with pytest.raises(ReleaseError, match="encoder"):
        encoder_to_fit(write_release(release.path, manifest))


@pytest.mark.parametrize(
    ("shape", "directions", "message"),
    [((4, 2, 1, 8), 4, "at most 3"), ((40, 2, 1, 8), 9, "at most 8"), ((9, 1, 1, 8), 2, "one")],
)
def test_too_little_to_fit_on_is_refused(
    shape: tuple[int, ...], directions: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(np.random.default_rng(0).normal(size=shape).astype(np.float32), directions)
