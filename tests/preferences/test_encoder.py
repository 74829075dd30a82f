"""Pairs in, an embedding and a profile out: chunks, cache, spaces, precision, another VLM."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.encoder import Encoder, EncoderConfig, embedding_space
from ppd_serve.preferences.pair_encoder import open_picture
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.picture_states import PARTS
from ppd_serve.preferences.prompt import Choice
from ppd_serve.preferences.transform import BetweenUserTransform
from tests.tiny_encoder import DIM, ROWS, WIDTH, make_tiny_encoder, random_choice
from tests.tiny_release import byte_tokenizer
from training import vlm
from training.autoencoder import to_input
from training.data.world import SIDE


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(directory: Path) -> Encoder:
    return Encoder.load(directory)


@pytest.fixture
def pairs() -> list[Pair]:
    rng = np.random.default_rng(1)
    return [as_pair(random_choice(rng), f"a house, {i}") for i in range(9)]


def as_pair(choice: Choice, prompt: str) -> Pair:
    return Pair(prompt, png(choice[1]), png(choice[2]))


def as_choices(pairs: list[Pair]) -> list[Choice]:
    return [(p.prompt, open_picture(p.preferred), open_picture(p.rejected)) for p in pairs]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


class Counted:
    """Counts an encoder's readings and how many pairs each had."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        read = encoder.read_all

        def counted(chunks):
            self.sizes += [len(choices) for choices in chunks]
            return read(chunks)

        monkeypatch.setattr(encoder, "read_all", counted)


@pytest.fixture
def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    yield Counted(encoder, monkeypatch)


def test_an_embedding_has_the_promised_form(encoder: Encoder, pairs: list[Pair]) -> None:
    reading = encoder.embed(pairs[:4])
    assert reading.embedding.shape == (encoder.rows, encoder.dim) == (ROWS, DIM)
    assert reading.embedding.dtype == np.float32
    assert np.isfinite(reading.embedding).all()
    assert isinstance(reading.profile, str)
    assert not any(
        word in reading.profile for word in encoder.processor.tokenizer.all_special_tokens
    )


def test_other_choices_other_embedding(encoder: Encoder, pairs: list[Pair]) -> None:
    one, other = (encoder.embed([p]).embedding for p in pairs[:2])
    swapped = Pair(pairs[0].prompt, pairs[0].rejected, pairs[0].preferred)
    assert cosine(one, other) < 0.9
    assert cosine(one, encoder.embed([swapped]).embedding) < 0.99


ORIENTATION = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


@pytest.mark.parametrize("exif", [ORIENTATION, b"Exif\0\0no TIFF"], ids=["turned", "garbage"])
def test_pictures_are_read_the_way_people_see_them(
    encoder: Encoder, pairs: list[Pair], exif: bytes
) -> None:
    upright = Image.open(io.BytesIO(pairs[0].preferred))
    buffer = io.BytesIO()
    turned = upright.transpose(Image.Transpose.ROTATE_90) if exif == ORIENTATION else upright
    turned.save(buffer, "PNG", exif=exif)
    sideways = Pair(pairs[0].prompt, buffer.getvalue(), pairs[0].rejected)
    np.testing.assert_array_equal(
        encoder.embed([sideways]).embedding, encoder.embed([pairs[0]]).embedding
    )


def test_only_the_last_partial_chunk_is_read_again(
    encoder: Encoder, pairs: list[Pair], counted: Counted
) -> None:
    for count in range(1, 10):
        encoder.embed(pairs[:count])
    assert counted.sizes == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    encoder.embed(pairs)
    assert len(counted.sizes) == 9


def test_chunks_are_weighted_by_their_pairs(encoder: Encoder, pairs: list[Pair]) -> None:
    def alone(chunk: list[Pair]) -> np.ndarray:
        return encoder.embed(chunk).embedding

    expected = (4 * alone(pairs[:4]) + 2 * alone(pairs[4:6])) / 6
    np.testing.assert_allclose(encoder.embed(pairs[:6]).embedding, expected, atol=1e-4)
    assert encoder.embed(pairs[:6]).profile == encoder.embed(pairs[4:6]).profile


def test_the_cache_goes_by_content(encoder: Encoder, pairs: list[Pair], counted: Counted) -> None:
    first = encoder.embed(pairs[:2])
    again = encoder.embed(
        [Pair(p.prompt, bytes(p.preferred), bytes(p.rejected)) for p in pairs[:2]]
    )
    assert len(counted.sizes) == 1
    np.testing.assert_array_equal(first.embedding, again.embedding)
    encoder.embed(pairs[1::-1])  # order counts
    encoder.embed([Pair("another caption", pairs[0].preferred, pairs[0].rejected), pairs[1]])
    assert len(counted.sizes) == 3


def test_the_cache_forgets_the_oldest(directory: Path, pairs: list[Pair], monkeypatch) -> None:
    encoder = Encoder.load(directory)
    encoder._cache_chunks = 2
    counted = Counted(encoder, monkeypatch)
    for pair in (*pairs[:3], pairs[2], pairs[1], pairs[0]):
        encoder.embed([pair])
    assert len(counted.sizes) == 4


def test_no_pairs_no_embedding(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        encoder.embed([])


def test_two_loads_agree(encoder: Encoder, directory: Path, pairs: list[Pair]) -> None:
    other = Encoder.load(directory)
    assert other.space == encoder.space
    np.testing.assert_array_equal(encoder.embed(pairs).embedding, other.embed(pairs).embedding)


@pytest.mark.parametrize(
    "caption",
    ["", " ", "a <image> b", "<end_of_utterance>", "<|assistant|> likes cats", "{caption} {0}",
     "🙂🙃" * 40, "Ünïcödé \x00", "long " * 800],
)  # fmt: skip
def test_any_caption_can_be_read(encoder: Encoder, pairs: list[Pair], caption: str) -> None:
    reading = encoder.embed([Pair(caption, pairs[0].preferred, pairs[0].rejected)])
    assert np.isfinite(reading.embedding).all()


def test_control_tokens_in_a_caption_say_nothing(encoder: Encoder, pairs: list[Pair]) -> None:
    def read(caption: str) -> np.ndarray:
        return encoder.embed([Pair(caption, pairs[0].preferred, pairs[0].rejected)]).embedding

    for token in encoder.processor.tokenizer.get_added_vocab():
        np.testing.assert_array_equal(read(f"a{token}boat"), read("a boat"))
    assert not np.array_equal(read("a tree"), read("a boat"))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (40, 300), (640, 480)])
def test_any_shape_can_be_read(encoder: Encoder, pairs: list[Pair], size: tuple[int, int]) -> None:
    picture = png(Image.new("RGB", size, "red"))
    assert np.isfinite(encoder.embed([Pair("x", picture, pairs[0].rejected)]).embedding).all()


# --- position, layers, profile --------------------------------------------------------------


def with_config(encoder: Encoder, **changes) -> Encoder:
    config = encoder.config.model_copy(update=changes)
    return Encoder(encoder.model, encoder.processor, config, encoder.transform, space="")


def choices(count: int = 2) -> list[Choice]:
    rng = np.random.default_rng(5)
    return [random_choice(rng) for _ in range(count)]


def test_layers_are_taken_from_where_the_profile_begins(encoder: Encoder) -> None:
    text = encoder.processor.apply_chat_template(
        encoder.config.prompt.conversation(choices()), add_generation_prompt=True
    )
    inputs = encoder.processor(
        text=text, images=encoder.config.prompt.images(choices()), return_tensors="pt"
    )
    with torch.no_grad():
        layers = encoder.model(**inputs, output_hidden_states=True).hidden_states
    state, _ = with_config(encoder, layers=(1, 2)).read(choices())
    np.testing.assert_allclose(state[0], layers[1][0, -1].numpy(), atol=1e-5)
    np.testing.assert_allclose(state[1], layers[2][0, -1].numpy(), atol=1e-5)


def test_after_the_profile_is_elsewhere(encoder: Encoder) -> None:
    before = encoder.read(choices())[0]
    after = with_config(encoder, position="after_profile").read(choices())[0]
    assert before.shape == after.shape
    assert cosine(before, after) < 0.99


def test_a_profile_can_be_skipped(encoder: Encoder) -> None:
    state, profile = with_config(encoder, profile="skip").read(choices())
    assert profile is None
    np.testing.assert_allclose(state, encoder.read(choices())[0], atol=1e-6)
    after, profile = with_config(encoder, profile="skip", position="after_profile").read(choices())
    assert profile is None
    np.testing.assert_allclose(
        after, with_config(encoder, position="after_profile").read(choices())[0], atol=1e-6
    )


# --- embedding space ------------------------------------------------------------------------


def space(path: Path, dtype: str = "float32", quantisation=None) -> str:
    return embedding_space(path, dtype=dtype, quantisation=quantisation)


def test_the_space_is_the_files_and_the_precision(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "moved")
    assert space(copy) == space(directory)
    spaces = {space(copy), space(copy, "bfloat16"), space(copy, quantisation="4bit")}

    prompt = json.loads((copy / "encoder.json").read_text())
    prompt["prompt"]["task"] += "!"
    (copy / "encoder.json").write_text(json.dumps(prompt))
    spaces.add(space(copy))

    transform = BetweenUserTransform.load(copy / "transform.safetensors")
    BetweenUserTransform(transform.mean + 1, transform.matrix).save(copy / "transform.safetensors")
    spaces.add(space(copy))

    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    spaces.add(space(copy))
    assert len(spaces) == 6


def test_the_loaded_space_is_the_computed_one(encoder: Encoder, directory: Path) -> None:
    assert encoder.space == space(directory)


# --- precision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "at_least"),
    [
        ({"dtype": "bfloat16"}, 0.995),
        ({"dtype": "float16"}, 0.999),
        ({"quantisation": "4bit"}, 0.95),
    ],
)
def test_lower_precision_points_the_same_way(
    encoder: Encoder, directory: Path, how: dict[str, str], at_least: float
) -> None:
    if "quantisation" in how:
        pytest.importorskip("bitsandbytes")
    low = Encoder.load(directory, **how)  # type: ignore[arg-type]
    assert low.space != encoder.space
    states, full = low.read(choices())[0], encoder.read(choices())[0]
    assert states.dtype == np.float32
    assert cosine(states, full) > at_least
    if "quantisation" in how:
        mlp = low.model.model.text_model.layers[0].mlp
        assert type(mlp.down_proj).__name__ == "Linear4bit"
        assert type(mlp.up_proj) is torch.nn.Linear  # 32 inputs are half a block
        assert type(low.model.lm_head) is torch.nn.Linear


# --- directories that cannot be served ------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["encoder.json", "transform.safetensors", "model.safetensors", "config.json"]
)
def test_names_what_is_missing(directory: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(directory, tmp_path / "broken")
    (copy / file).unlink()
    with pytest.raises(ReleaseError, match="encoder"):
        Encoder.load(copy)


def test_refuses_settings_it_does_not_know(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "broken")
    (copy / "encoder.json").write_text('{"positon": "after_profile"}')
    with pytest.raises(ReleaseError, match=r"encoder\.json"):
        Encoder.load(copy)
    (copy / "encoder.json").write_text("{}")  # one layer, but the transform has two rows
    with pytest.raises(ReleaseError, match="1 layers, a transform for 2"):
        Encoder.load(copy)


def test_refuses_pickled_weights(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "pickled")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ReleaseError):
        Encoder.load(copy)


# --- another class of VLM -------------------------------------------------------------------

LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA with CLIP's tower: other tokens per image, other template, other weights."""
    path = tmp_path_factory.mktemp("llava")
    tokenizer = byte_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=LLAVA_CHAT, num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": WIDTH,
            "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
        },
        image_token_index=image,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(path)
    identity = np.eye(WIDTH, dtype=np.float32)[None]
    BetweenUserTransform(np.zeros((1, WIDTH), np.float32), identity).save(
        path / "transform.safetensors"
    )
    config_file = EncoderConfig(max_profile_tokens=4).model_dump_json()
    (path / "encoder.json").write_text(config_file)
    return path


def test_llava_reads_pairs_too(llava: Path, pairs: list[Pair], counted: Counted) -> None:
    encoder = Encoder.load(llava)
    assert type(encoder.model).__name__ == "LlavaForConditionalGeneration"
    one, other = (encoder.embed([p]).embedding for p in pairs[:2])
    assert one.shape == (1, WIDTH)
    assert not np.allclose(one, other, atol=1e-4)
    assert np.isfinite(encoder.embed(pairs[:6]).embedding).all()


def test_what_is_longer_than_the_model_reads_is_refused(llava: Path, pairs: list[Pair]) -> None:
    """With rotary positions it would be read all the same, and badly."""
    encoder = Encoder.load(llava)
    read = encoder.model.config.text_config.max_position_embeddings
    assert np.isfinite(encoder.embed(pairs[:1]).embedding).all()
    encoder.model.config.text_config.max_position_embeddings = 500
    with pytest.raises(ReleaseError, match=r"tokens, of which the model reads 500.*pixels"):
        encoder.embed(pairs[:4])
    # Long by its captions alone, a chunk is read without them, and so are no others beside it.
    bare = [dataclasses.replace(pair, prompt="") for pair in pairs[:4]]
    long = [dataclasses.replace(pair, prompt="a very long caption " * 9) for pair in pairs[:4]]
    room = encoder._inputs([[("", *c[1:]) for c in as_choices(bare)]])["input_ids"].shape[1] + 4
    encoder.model.config.text_config.max_position_embeddings = room + 40
    short = [dataclasses.replace(pair, prompt="b") for pair in pairs[4:8]]
    together = encoder.embed_all([long, short])
    fresh = Encoder.load(llava)
    np.testing.assert_allclose(together[0].embedding, fresh.embed(bare).embedding, atol=1e-5)
    np.testing.assert_allclose(together[1].embedding, fresh.embed(short).embedding, atol=1e-5)
    assert np.abs(together[0].embedding - fresh.embed(long).embedding).max() > 1e-3
    encoder.model.config.text_config.max_position_embeddings = read
    assert np.isfinite(encoder.embed(pairs[:4]).embedding).all()


def test_llava_looks_at_pictures_too(llava: Path, pairs: list[Pair]) -> None:
    encoder = Encoder.load(llava)
    width = encoder.model.config.text_config.hidden_size
    assert encoder.look(pairs[0].preferred).shape == (PARTS * width,)


def test_a_picture_is_looked_at_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any words: the same picture, the same states; another picture, others."""
    rng = np.random.default_rng(5)
    one, other = (png(random_choice(rng)[1]) for _ in range(2))
    seen = encoder.look(one)
    assert seen.shape == (PARTS * WIDTH,) and seen.dtype == np.float32
    assert not np.allclose(seen, encoder.look(other))

    def no_more(*_: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr("ppd_serve.preferences.encoder.picture_states", no_more)
    np.testing.assert_array_equal(encoder.look(one), seen)


def test_pictures_not_looked_at_for_long_are_forgotten(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    one, other, third = (png(random_choice(rng)[1]) for _ in range(3))
    looked: list[object] = []

    def look(*args: object) -> np.ndarray:
        looked.append(args)
        return np.zeros(PARTS * WIDTH, np.float32)

    monkeypatch.setattr("ppd_serve.preferences.encoder.picture_states", look)
    monkeypatch.setattr("ppd_serve.preferences.pair_encoder.SEEN_BYTES", 2 * PARTS * WIDTH * 4)
    for picture in (one, other, one, third, one):  # the other makes room
        encoder.look(picture)
    assert len(looked) == 3
    encoder.look(other)
    assert len(looked) == 4


def test_parts_are_means_over_the_models_own_picture_tokens(directory: Path) -> None:
    """The studio's four tokens are its four parts, as the training reads them."""
    encoder = Encoder.load(directory)
    picture = random_choice(np.random.default_rng(6))[1].resize((SIDE, SIDE))
    pixels = to_input(np.asarray(picture)[None])
    with torch.no_grad():
        tokens = vlm.image_features(encoder.model, pixels)[0]
    np.testing.assert_allclose(encoder.look(png(picture)), tokens.flatten(), atol=1e-5)
