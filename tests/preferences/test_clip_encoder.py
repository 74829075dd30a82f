"""Day one: the CLIP image tower of the public IP-Adapters as an encoder."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.clip_encoder import ClipEncoder
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.load import load_encoder
from ppd_serve.preferences.pairs import Pair
from tests.tiny_encoder import make_tiny_encoder, random_choice
from tests.twins.encoders import CLIP_DIM, make_clip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def encoder(directory: Path) -> ClipEncoder:
    encoder = load_encoder(directory)
    assert isinstance(encoder, ClipEncoder)
    return encoder


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = np.random.default_rng(1)
    return [Pair("x", *map(png, random_choice(rng)[1:])) for _ in range(6)]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_embeds(directory: Path, *pictures: bytes) -> np.ndarray:
    """As diffusers' ``encode_image`` makes them."""
    model = CLIPVisionModelWithProjection.from_pretrained(directory)
    side = model.config.image_size
    extract = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    opened = [Image.open(io.BytesIO(p)) for p in pictures]
    with torch.no_grad():
        return model(
            extract(images=opened, return_tensors="pt")["pixel_values"]
        ).image_embeds.numpy()


def test_it_is_preferred_less_rejected_at_a_pictures_length(
    encoder: ClipEncoder, directory: Path, pairs: list[Pair]
) -> None:
    liked = image_embeds(directory, *(p.preferred for p in pairs))
    disliked = image_embeds(directory, *(p.rejected for p in pairs))
    reading = encoder.embed(pairs)
    assert reading.embedding.shape == (encoder.rows, encoder.dim) == (1, CLIP_DIM)
    assert reading.embedding.dtype == np.float32 and reading.profile is None
    difference = liked.mean(0) - disliked.mean(0)
    direction = reading.embedding[0] / np.linalg.norm(reading.embedding)
    np.testing.assert_allclose(direction, difference / np.linalg.norm(difference), atol=1e-4)
    lengths = np.linalg.norm(np.concatenate([liked, disliked]), axis=1)
    assert np.isclose(np.linalg.norm(reading.embedding), lengths.mean(), rtol=1e-2)


def test_chunks_are_means_too(encoder: ClipEncoder, directory: Path, pairs: list[Pair]) -> None:
    """Chunks of four: order does not matter, and a new pair costs one reading."""
    first = encoder.embed(pairs).embedding
    assert encoder.chunks_read == 2
    encoder.embed(pairs[:5])
    assert encoder.chunks_read == 3
    np.testing.assert_allclose(encoder.embed(pairs[::-1]).embedding, first, atol=1e-4)
    one_by_one = ClipEncoder.load(directory)
    together = one_by_one.embed_all([pairs[:1], pairs[1:4], pairs])
    for reading, person in zip(together, [pairs[:1], pairs[1:4], pairs], strict=True):
        np.testing.assert_allclose(reading.embedding, encoder.embed(person).embedding, atol=1e-4)


def test_opposite_choices_are_opposite(encoder: ClipEncoder, pairs: list[Pair]) -> None:
    swapped = [Pair(p.prompt, p.rejected, p.preferred) for p in pairs]
    np.testing.assert_allclose(
        encoder.embed(swapped).embedding, -encoder.embed(pairs).embedding, atol=1e-4
    )


def test_choices_that_say_nothing_are_nobody(encoder: ClipEncoder, pairs: list[Pair]) -> None:
    """Exactly: what rounding leaves of equal pictures is no taste."""
    both_ways = [pairs[0], Pair("x", pairs[0].rejected, pairs[0].preferred)]
    same = [Pair("x", pairs[0].preferred, pairs[0].preferred)]
    for nothing in (both_ways, same, both_ways * 3):
        assert not encoder.embed(nothing).embedding.any()


def test_a_picture_is_looked_at_as_it_is_embedded(
    encoder: ClipEncoder, directory: Path, pairs: list[Pair]
) -> None:
    seen = encoder.look(pairs[0].preferred)
    np.testing.assert_allclose(seen, image_embeds(directory, pairs[0].preferred)[0], atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (640, 480)])
def test_any_shape_can_be_read(encoder: ClipEncoder, size: tuple[int, int]) -> None:
    picture = png(Image.new("RGB", size, "red"))
    assert np.isfinite(encoder.embed([Pair("x", picture, png(Image.new("RGB", (9, 9))))])
                       .embedding).all()  # fmt: skip


def test_its_own_picture_settings_count(directory: Path, tmp_path: Path, pairs: list[Pair]) -> None:
    copy = shutil.copytree(directory, tmp_path / "copy")
    settings = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3,
    }  # fmt: skip
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    other = load_encoder(copy)
    usual = load_encoder(directory)
    assert other.space != usual.space
    assert not np.allclose(other.look(pairs[0].preferred), usual.look(pairs[0].preferred))


def test_precisions_have_their_own_spaces(directory: Path, pairs: list[Pair]) -> None:
    full, low = load_encoder(directory), load_encoder(directory, dtype="bfloat16")
    a, b = (e.embed(pairs).embedding.ravel() for e in (full, low))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert full.space != low.space
    with pytest.raises(ReleaseError, match="not quantised"):
        load_encoder(directory, quantisation="4bit")


def test_the_models_own_config_says_which_encoder_it_is(tmp_path: Path) -> None:
    assert type(load_encoder(make_tiny_encoder(tmp_path / "vlm"))) is Encoder


def test_a_folder_of_the_hub_will_do(
    directory: Path, tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[str]]] = []
    root = tmp_path / "snapshot"
    shutil.copytree(directory, root / "models" / "image_encoder")

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = {"hub_id": "h94/IP-Adapter", "revision": "abc", "path": "models/image_encoder"}
    (tmp_path / "encoder.json").write_text(json.dumps({"model": model}))
    remote = load_encoder(tmp_path)
    assert "models/image_encoder/*.safetensors" in asked[0][2]
    np.testing.assert_array_equal(
        remote.embed(pairs).embedding, load_encoder(directory).embed(pairs).embedding
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [("encoder.json", None), ("encoder.json", "[]"), ("encoder.json", '{"scale": 2}'),
     ("encoder.json", '{"model": {"hub_id": "a/b"}}'), ("config.json", None),
     ("model.safetensors", None)],
)  # fmt: skip
def test_names_what_is_wrong(directory: Path, tmp_path: Path, file: str, text: str | None) -> None:
    copy = shutil.copytree(directory, tmp_path / "broken")
    (copy / file).unlink()
    if text is not None:
        (copy / file).write_text(text)
    with pytest.raises(ReleaseError, match="encoder"):
        load_encoder(copy)
