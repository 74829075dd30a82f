"""Every class of VLM that is promised, at toy size, through the code that reads the real ones."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.encoder import Encoder, EncoderConfig
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.picture_states import PARTS
from ppd_serve.preferences.prompt import Choice
from ppd_serve.preferences.transform import BetweenUserTransform
from tests.tiny_encoder import random_choice
from tests.twins.encoders import LAYERS, PROMPT, VLMS, WIDTH, make_vlm

Load = Callable[..., Encoder]


@pytest.fixture(scope="module", params=VLMS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vlm(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def load(directory: Path, tmp_path: Path) -> Load:
    """The twin with another ``encoder.json``, without a transform."""

    def loaded(**changes: object) -> Encoder:
        copy = shutil.copytree(directory, tmp_path / "changed", dirs_exist_ok=True)
        config = EncoderConfig(prompt=PROMPT, max_profile_tokens=4).model_copy(update=changes)
        (copy / "encoder.json").write_text(config.model_dump_json())
        return Encoder.load(copy, unfitted=True)

    return loaded


@pytest.fixture
def encoder(directory: Path) -> Encoder:
    return Encoder.load(directory, unfitted=True)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = np.random.default_rng(1)
    return [pair(*random_choice(rng)[1:], f"a house{' by the sea' * i}") for i in range(6)]


def pair(preferred: Image.Image, rejected: Image.Image, prompt: str = "x") -> Pair:
    return Pair(prompt, png(preferred), png(rejected))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_it_is_the_class_it_says(encoder: Encoder, directory: Path) -> None:
    declared = json.loads((directory / "config.json").read_text())["architectures"]
    assert [type(encoder.model).__name__] == declared


def test_pictures_do_not_depend_on_torchvision(encoder: Encoder) -> None:
    assert type(encoder.processor.image_processor).__name__.endswith("Pil")


def test_an_embedding_is_finite_and_the_same_again(
    encoder: Encoder, directory: Path, pairs: list[Pair]
) -> None:
    reading = encoder.embed(pairs)
    assert reading.embedding.shape == (1, WIDTH) and reading.embedding.dtype == np.float32
    assert np.isfinite(reading.embedding).all()
    assert isinstance(reading.profile, str)
    again = Encoder.load(directory, unfitted=True).embed(pairs)
    np.testing.assert_array_equal(again.embedding, reading.embedding)


def test_order_matters(encoder: Encoder, pairs: list[Pair]) -> None:
    first, second = pairs[:2]
    swapped = Pair(first.prompt, first.rejected, first.preferred)
    usual = encoder.embed([first, second]).embedding
    for other in ([second, first], [swapped, second], [first]):
        assert np.abs(encoder.embed(other).embedding - usual).max() > 1e-2


@pytest.mark.parametrize("position", ["before_profile", "after_profile"])
def test_people_read_together_are_read_as_alone(
    load: Load, pairs: list[Pair], position: str
) -> None:
    """Of other lengths, with other tiles, texts that end at other tokens: padding says nothing."""
    rng = np.random.default_rng(3)
    wide = Image.fromarray(rng.integers(0, 256, (24, 90, 3), np.uint8))
    people = [pairs[:1], [pair(wide, wide.rotate(180)), *pairs[1:3]], pairs[:6]]
    together = load(position=position, max_profile_tokens=6)
    alone = load(position=position, max_profile_tokens=6)
    for read, person in zip(together.embed_all(people, at_once=8), people, strict=True):
        own = alone.embed(person)
        np.testing.assert_allclose(read.embedding, own.embedding, atol=2e-4)
        assert read.profile == own.profile


def test_a_text_that_ends_early_is_read_at_its_end(load: Load, pairs: list[Pair]) -> None:
    encoder = load(max_profile_tokens=8)
    people = [_choices(pairs[:1]), _choices(pairs[1:5])]
    one, other = (written_tokens(encoder, person) for person in people)
    ends = [t for t in {*one, *other} if [*one, t].index(t) != [*other, t].index(t)]
    encoder.model.generation_config.eos_token_id = ends[:1]  # one text ends before the other
    alone = [encoder.read(person) for person in people]
    assert alone[0][1] != alone[1][1]
    for (state, profile), (own, own_profile) in zip(encoder.read_all(people), alone, strict=True):
        np.testing.assert_allclose(state, own, atol=2e-4)
        assert profile == own_profile


@torch.inference_mode()
def written_tokens(encoder: Encoder, person: list[Choice]) -> list[int]:
    inputs = encoder._inputs([person])
    start = inputs["input_ids"].shape[1]
    found: list[int] = encoder.model.generate(**inputs, do_sample=False, max_new_tokens=8)[
        0, start:
    ].tolist()
    return found


def _choices(person: list[Pair]) -> list[Choice]:
    opened = [Image.open(io.BytesIO(b)).convert("RGB") for p in person
              for b in (p.preferred, p.rejected)]  # fmt: skip
    return [(p.prompt, opened[2 * i], opened[2 * i + 1]) for i, p in enumerate(person)]


def test_all_layers_are_all_but_the_words_themselves(load: Load, pairs: list[Pair]) -> None:
    every = load(layers="all").embed(pairs[:2]).embedding
    assert every.shape == (LAYERS, WIDTH)
    np.testing.assert_array_equal(every[-1:], load().embed(pairs[:2]).embedding)


def test_a_profile_can_be_skipped(load: Load, pairs: list[Pair]) -> None:
    written = load(position="before_profile").embed(pairs[:2])
    skipped = load(position="before_profile", profile="skip").embed(pairs[:2])
    assert written.profile is not None and skipped.profile is None
    np.testing.assert_allclose(skipped.embedding, written.embedding, atol=1e-5)


def picture_tokens(encoder: Encoder, size: tuple[int, int]) -> int:
    """Of one picture among a pair's."""
    image = Image.new("RGB", size, "red")
    ids = encoder._inputs([[("x", image, image)]])["input_ids"]
    token = encoder.processor.tokenizer.convert_tokens_to_ids(encoder.processor.image_token)
    return int((ids == token).sum()) // 2


def test_the_budget_is_kept_in_the_models_own_unit(load: Load, directory: Path) -> None:
    """A picture of 4 x 4 of Qwen's tokens, or 2 x 2 tiles of the others, with an eighth to see."""
    kind = directory.name.rstrip("0123456789")
    token = {"qwen2_5_vl": 28, "qwen3_vl": 32}.get(kind, 16)
    whole, part = load(), load(picture_pixels=(2 * token) ** 2)
    size = (4 * token, 4 * token)
    full = {"qwen2_5_vl": 16, "qwen3_vl": 16, "llava_onevision": 4 + 1}.get(kind, 5 * 4)
    least = {"llava_onevision": 4 + 1}.get(kind, 4)
    assert picture_tokens(whole, size) == full
    assert picture_tokens(part, size) == least
    assert np.isfinite(part.embed([pair(Image.new("RGB", size), Image.new("RGB", size, "red"))])
                       .embedding).all()  # fmt: skip
    assert part.look(png(Image.new("RGB", size))).shape == (PARTS * WIDTH,)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3000), (3000, 2), (40, 300), (640, 480)])
def test_any_shape_can_be_read(encoder: Encoder, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "red")
    assert np.isfinite(encoder.embed([pair(picture, Image.new("RGB", (9, 9)))]).embedding).all()
    assert np.isfinite(encoder.look(png(picture))).all()


def test_a_picture_alone_is_seen(encoder: Encoder) -> None:
    rng = np.random.default_rng(5)
    one, other = (encoder.look(png(random_choice(rng)[1])) for _ in range(2))
    assert one.shape == (PARTS * WIDTH,) and np.abs(one - other).max() > 1e-2


def test_captions_cannot_speak_the_models_language(encoder: Encoder, pairs: list[Pair]) -> None:
    def read(caption: str) -> np.ndarray:
        return encoder.embed([Pair(caption, pairs[0].preferred, pairs[0].rejected)]).embedding

    for token in ("<|im_end|>", encoder.processor.image_token):
        np.testing.assert_array_equal(read(f"a{token}boat"), read("a boat"))


def test_a_transform_of_other_layers_is_refused(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "copy")
    with pytest.raises(ReleaseError, match=r"transform\.safetensors is missing"):
        Encoder.load(copy)
    matrix = np.ones((2, WIDTH, 3), np.float32)
    BetweenUserTransform(np.zeros((2, WIDTH), np.float32), matrix).save(
        copy / "transform.safetensors"
    )
    with pytest.raises(ReleaseError, match="1 layers, a transform for 2"):
        Encoder.load(copy)


# --- templates ------------------------------------------------------------------------------


def test_pictures_stand_between_the_words_about_them(encoder: Encoder) -> None:
    image = Image.new("RGB", (8, 8))
    text = encoder._chat.text(PROMPT.conversation([("a boat", image, image)]))
    token = encoder.processor.image_token
    places = [text.index("1. a boat"), text.index("liked"), text.index(token),
              text.index("disliked"), text.rindex(token), text.index("Who is this?")]  # fmt: skip
    assert places == sorted(places) and text.count(token) == 2


@pytest.mark.parametrize(
    ("template", "told"),
    [("{% for m in messages %}{{ m['role'] }}{% endfor %}", "in place"),
     ("{{ raise_exception('no lists') }}", "no lists"), ("{% for", "no chat template"),
     (None, "no chat template")],
)  # fmt: skip
def test_a_template_that_loses_pictures_is_refused(
    directory: Path, tmp_path: Path, template: str | None, told: str
) -> None:
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ReleaseError, match=told):
        Encoder.load(copy, unfitted=True)


# --- the hub --------------------------------------------------------------------------------


def test_two_files_make_a_model_of_the_hub_an_encoder(
    directory: Path, tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    settings = json.loads((directory / "encoder.json").read_text())
    settings["model"] = {"hub_id": "some/vlm", "revision": "abc"}
    (tmp_path / "encoder.json").write_text(json.dumps(settings))
    remote = Encoder.load(tmp_path, unfitted=True)
    assert asked[0][:2] == ("some/vlm", "abc") and "*.safetensors" in asked[0][2]
    local = Encoder.load(directory, unfitted=True)
    np.testing.assert_array_equal(
        remote.embed(pairs[:2]).embedding, local.embed(pairs[:2]).embedding
    )
    spaces = {remote.space, local.space}
    other = shutil.copytree(directory, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(other))
    spaces.add(Encoder.load(tmp_path, unfitted=True).space)
    assert len(spaces) == 3  # the hub's weights are part of it, whatever the revision says
