"""The VLM's training sees what the server will see, and learns to read people from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.transform import BetweenUserTransform
from tests.training.studio import small_pool
from training import vlm, vlm_lessons
from training.data.pool import PairSampler, Pool
from training.data.users import people
from training.data.world import AXES, CAPTIONS


@pytest.fixture(scope="module")
def pool() -> Pool:
    return small_pool(64, captions=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VLM, written and read back as the server does."""
    path = tmp_path_factory.mktemp("vlm")
    processor = vlm.new_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vlm.new_vlm(processor.tokenizer, width=64)
        for weight in model.parameters():  # a fresh model's states hardly depend on anything
            weight.data.mul_(3 if weight.ndim > 1 else 1)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def model(saved: Path) -> Idefics3ForConditionalGeneration:
    return Idefics3ForConditionalGeneration.from_pretrained(saved).eval()


@pytest.fixture
def reader(saved: Path, model: Idefics3ForConditionalGeneration, pool: Pool) -> vlm.Reader:
    features = vlm.cache_features(model, pool.images)
    return vlm.Reader(model, AutoProcessor.from_pretrained(saved), features)


def choices(pool: Pool, count: int, people_count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return PairSampler(pool).draw(people("dev", people_count), count, np.random.default_rng(0))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_training_states_are_the_servers_states(
    saved: Path, model: Idefics3ForConditionalGeneration, reader: vlm.Reader, pool: Pool, count: int
) -> None:
    """Cached features and a padded batch on one side, PNG-able pictures one by one through the real
    processor and ``generate`` on the other."""
    preferred, rejected = choices(pool, count)
    captions = pool.captions[preferred].copy()
    captions[0, 0] = CAPTIONS.index(max(CAPTIONS, key=lambda c: len(str(c))))  # rows get padded
    with torch.no_grad():
        trained, _ = reader.states(captions, preferred, rejected)
    width = model.config.text_config.hidden_size
    identity = np.eye(width, dtype=np.float32)[None]
    encoder = Encoder(
        model, AutoProcessor.from_pretrained(saved), vlm.ENCODER_CONFIG,
        BetweenUserTransform(np.zeros((1, width), np.float32), identity), space="",
    )  # fmt: skip
    for row in range(len(captions)):
        served, _ = encoder.read(
            [
                (str(CAPTIONS[c]), Image.fromarray(pool.images[w]), Image.fromarray(pool.images[x]))
                for c, w, x in zip(captions[row], preferred[row], rejected[row], strict=True)
            ]
        )
        np.testing.assert_allclose(trained[row].numpy(), served[0], atol=1e-4)
    assert (trained[0] - trained[1]).abs().max() > 1e-2  # else the comparison says nothing


def test_neighbours_in_the_batch_do_not_matter(reader: vlm.Reader, pool: Pool) -> None:
    preferred, rejected = choices(pool, 2, people_count=6)
    captions = pool.captions[preferred]
    with torch.no_grad():
        together, _ = reader.states(captions, preferred, rejected)
        alone, _ = reader.states(captions[4:5], preferred[4:5], rejected[4:5])
        profiles = ["likes warm light." for _ in range(6)]
        written, _ = reader.states(captions, preferred, rejected, profiles)
    torch.testing.assert_close(together[4:5], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(written, together, atol=1e-4, rtol=0)


def test_the_profile_does_not_leak_into_the_state_and_is_scored(
    reader: vlm.Reader, pool: Pool
) -> None:
    preferred, rejected = choices(pool, 1)
    captions = pool.captions[preferred]
    with torch.no_grad():
        _, one = reader.states(captions, preferred, rejected, ["likes fog."] * 3)
        _, other = reader.states(captions, preferred, rejected, ["likes bold outlines."] * 3)
    assert one is not None and other is not None
    assert one > 0 and one != other


def test_liked_and_disliked_are_not_the_same(reader: vlm.Reader, pool: Pool) -> None:
    preferred, rejected = choices(pool, 1)
    captions = pool.captions[preferred]
    with torch.no_grad():
        state, _ = reader.states(captions, preferred, rejected)
        swapped, _ = reader.states(captions, rejected, preferred)
    assert (state - swapped).abs().max() > 1e-3


def test_whitened_patches_start_with_equal_spread(pool: Pool) -> None:
    model = vlm.new_vlm(vlm.new_processor().tokenizer, width=64)
    vlm_lessons.whiten_patches(model, pool.images)
    layer = model.model.vision_model.embeddings.patch_embedding
    with torch.no_grad():
        out = layer(vlm.to_input(pool.images)).transpose(0, 1).flatten(1)
    assert out.mean(1).abs().max() < 0.05
    spread = out.std(1)
    assert spread.max() < 3 * spread[:32].min()


def test_profiles_speak_of_the_strongest_axes_first() -> None:
    tastes = people("train", 200)
    for index in range(200):
        profile = vlm.profile_of(tastes, index)
        assert profile.startswith("likes ") and profile.endswith(".")
        strength = np.abs(tastes.weight[index]) + tastes.curvature[index]
        first = profile.removeprefix("likes ").rstrip(".").split(", ")[0]
        assert any(word in first for word in vlm.WORDS[int(strength.argmax())])
    assert len(vlm.WORDS) == len(AXES)


def test_looking_learns(tmp_path: Path, pool: Pool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vlm.new_vlm(vlm.new_processor().tokenizer, width=32)
        vlm_lessons.whiten_patches(model, pool.images)
        stage = vlm_lessons.look_stage(model, pool, pool, tmp_path, steps=30, batch=16)
    stage.warmup = 5
    assert stage.run()
    explained = [v for k, v in stage.history[-1].items() if k.startswith("r2_")]
    assert len(explained) == len(AXES)
    assert np.mean(explained) > 0.1


def test_reading_learns(tmp_path: Path, reader: vlm.Reader, pool: Pool) -> None:
    """The mechanics: the losses fall, and only the language part moves."""
    model = reader.model
    vision = model.model.vision_model.embeddings.patch_embedding.weight.clone()
    before = model.lm_head.weight.clone()
    stage = vlm_lessons.profile_stage(
        reader, pool, tmp_path, steps=12, readings=16, questions=4,
        held_out=(reader, pool, people("dev", 8)),
    )  # fmt: skip
    stage.warmup = 2
    assert stage.run()
    last = stage.history[-1]
    assert {"dev_accuracy_1", "dev_accuracy_2", "dev_accuracy_4", "writing", "rank"} <= last.keys()
    torch.testing.assert_close(model.model.vision_model.embeddings.patch_embedding.weight, vision)
    assert not torch.equal(model.lm_head.weight, before)
