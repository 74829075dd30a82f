"""What is prepared is read as the server will read, fits into memory, and is never a former set."""

from __future__ import annotations

import io
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.embedding_space import embedding_space
from ppd_serve.release import Release, write_release
from ppd_serve.storage.store import NewImage, NewPair
from tests.storage.places import Place
from tests.tiny_release import make_tiny_release
from tests.training.shards import odd_exif, picture, row
from training.__main__ import app
from training.data.choice_set import ChoiceSet
from training.data.choices import Skipped, choice_of
from training.data.closeness import unit
from training.data.prepare import _text, prepare
from training.data.readings import split_of
from training.data.relabel import scored
from training.data.sources import choices_of

CHOICES = [choice_of(row(number)) for number in range(4)]  # of one person: one reading


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Its embeddings are those of an encoder in bfloat16."""
    made = make_tiny_release(tmp_path_factory.mktemp("release"))
    space = embedding_space(made.path / "encoder", dtype="bfloat16", quantisation=None)
    return write_release(made.path, made.manifest.model_copy(update={"embedding_space": space}))


def test_an_encoder_that_reads_otherwise_is_refused(release: Release, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"in float32 is .* dtype and quantisation must be"):
        prepare(CHOICES[:1], release, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # before any picture was looked at
    told = CliRunner().invoke(
        app, ["fit-questions", "--release", str(release.path), "--rows", str(tmp_path)]
    )
    assert isinstance(told.exception, ReleaseError) and "dtype" in str(told.exception)


def test_a_vlm_without_a_transform_is_named(release: Release, tmp_path: Path) -> None:
    other = make_tiny_release(tmp_path / "release")
    (other.path / "encoder" / "transform.safetensors").unlink()
    bare = other.manifest.model_copy(update={"embedding_space": None, "embedding_shape": None})
    with pytest.raises(ReleaseError, match="no transform"):
        prepare(CHOICES[:1], write_release(other.path, bare), tmp_path / "out")


@pytest.mark.slow
def test_readings_are_what_the_server_would_read(release: Release, tmp_path: Path) -> None:
    found = prepare(CHOICES, release, tmp_path, dtype="bfloat16")
    pairs = [choice.pair for choice in CHOICES]
    served = release.load_encoder(dtype="bfloat16").embed(pairs).embedding
    np.testing.assert_allclose(found.readings[0], served, atol=1e-5)
    assert np.abs(found.readings[0] - release.load_encoder().embed(pairs).embedding).max() > 1e-4


def test_what_a_camera_wrote_beside_a_picture_is_never_fatal(
    release: Release, tmp_path: Path
) -> None:
    """Pillow turns a picture by its EXIF and writes that again, at which some raise."""
    odd, plain = picture(3, exif=odd_exif()), picture(3)
    with pytest.raises(Exception):  # noqa: B017 - of whatever kind
        ImageOps.exif_transpose(Image.open(io.BytesIO(odd)))
    rows = [row(n, jpg_1=side) for n, side in enumerate((odd, plain))]
    choices = [choice_of({**one, "image_1_uid": None}) for one in rows]
    found = prepare(choices, release, tmp_path, dtype="bfloat16")
    assert len(found.latents) == 4
    np.testing.assert_array_equal(*found.latents[found.rejected])
    seen: list[Image.Image] = []
    scorer = lambda _, pictures: seen.extend(pictures) or np.arange(len(pictures))  # noqa: E731
    assert len(list(scored(choices, scorer, Skipped(kept=2)))) == 2 and len(seen) == 4


def test_prompts_are_mapped_and_kept_once(release: Release, tmp_path: Path) -> None:
    """Of SDXL, those of a large set are tens of gigabytes each time."""
    found = prepare(CHOICES[:3], release, tmp_path, dtype="bfloat16")  # too few to be read
    assert found.prompt_features is None
    assert all(isinstance(states, np.memmap) for states in found.text.values())
    assert not list(tmp_path.glob("*.raw"))
    prompts = unit(found.text["states"][found.prompt].reshape(len(found), -1))
    pictures = found.picture_features
    assert pictures is not None
    nearness = (prompts @ prompts.T + pictures[found.preferred] @ pictures[found.rejected].T) / 2
    np.testing.assert_allclose(found.distance(np.arange(len(found))), 1 - nearness, atol=1e-6)


def test_of_the_prompts_states_only_one_is_held(tmp_path: Path) -> None:
    class Halved:
        """A backbone's text in half precision; says how many of its states are still held."""

        def __init__(self) -> None:
            self.made: list[weakref.ref[torch.Tensor]] = []
            self.most = 0

        def encode(self, prompt: str | None) -> dict[str, torch.Tensor]:
            self.most = max(self.most, sum(state() is not None for state in self.made))
            state = torch.full((1, 2), len(prompt or ""), dtype=torch.bfloat16)
            self.made.append(weakref.ref(state))
            return {"states": state}

    backbone = Halved()
    found = _text(backbone, ["a", "abc", "ab", None], tmp_path)  # type: ignore[arg-type]
    assert backbone.most <= 1
    assert isinstance(found["states"], np.memmap) and not list(tmp_path.iterdir())
    assert found["states"].tolist() == [[1, 1], [3, 3], [2, 2], [0, 0]]


def test_a_set_is_what_was_saved_last(tmp_path: Path) -> None:
    one, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
    plain = {name: one for name in ("user", "prompt", "preferred", "rejected", "read_in")}
    latents, text = np.zeros((1, 4, 4, 4), np.float32), np.zeros((2, 3, 5), np.float32)
    read = {"readings": np.zeros((0, 1, 2), np.float32), "reading_user": none}

    def saved(**more: object) -> ChoiceSet:
        ChoiceSet(**plain, latents=latents, **read, reading_pairs=none, **more).save(tmp_path)  # type: ignore[arg-type]
        return ChoiceSet.load(tmp_path)

    before = saved(
        text={"states": text, "pooled": text}, judged=np.array([[0, 0, 0, 1]]), weight=one
    )
    assert before.judged is not None and before.weight is not None
    after = saved(text={"states": text})
    assert after.judged is None and after.weight is None and set(after.text) == {"states"}


def test_where_nobody_is_left_no_former_set_is_found(release: Release, tmp_path: Path) -> None:
    prepare(CHOICES[:1], release, tmp_path, dtype="bfloat16")
    assert len(ChoiceSet.load(tmp_path)) == 1
    with pytest.raises(ValueError, match="not one choice"):
        prepare([], release, tmp_path, dtype="bfloat16")
    with pytest.raises(FileNotFoundError):
        ChoiceSet.load(tmp_path)


def test_a_server_keeps_choices_by_project(tmp_path: Path) -> None:
    at = Place(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))
    store, sides = at.open(), (NewImage(picture(n), "image/jpeg", 16, 16) for n in (0, 1))
    store.add_pairs("my-app", "ann", [NewPair("a fox", *sides)])
    store.close()

    def found(project: str) -> list[str]:
        source = choices_of(
            None, None, at.database_url, at.blob_url, project=project, least_pairs=1
        )
        return [choice.user for choice in source(Skipped(), split_of("my-app/ann"))]

    assert found("my-app") == ["my-app/ann"] and found("default") == []
