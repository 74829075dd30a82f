"""How near pairs are, and CLIP features from a small model of the real class."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.data.closeness import Clip, pair_distance


def test_distance_is_one_minus_the_cosine_of_prompt_beside_picture() -> None:
    rng = np.random.default_rng(0)
    prompt, w, x = (rng.normal(size=(5, 7)).astype(np.float32) * 9 for _ in range(3))
    distance = pair_distance(prompt, w, x)
    for i in range(5):
        for j in range(5):
            first = np.concatenate([prompt[i] / norm(prompt[i]), w[i] / norm(w[i])])
            other = np.concatenate([prompt[j] / norm(prompt[j]), x[j] / norm(x[j])])
            cosine = first @ other / norm(first) / norm(other)
            assert distance[i, j] == pytest.approx(1 - cosine, abs=1e-6)


def norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def test_the_same_prompt_and_picture_are_at_distance_zero_and_opposite_ones_at_two() -> None:
    rng = np.random.default_rng(1)
    prompt, w = rng.normal(size=(2, 2, 4)).astype(np.float32)
    assert np.diag(pair_distance(prompt, w, 3 * w)) == pytest.approx(0, abs=1e-6)
    prompt = np.stack([prompt[0], -prompt[0]])
    assert pair_distance(prompt, w, -w[::-1])[0, 1] == pytest.approx(2, abs=1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config=small | {"vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 0,
                             "eos_token_id": 1, "pad_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(path)
    words = ["<|startoftext|>", "<|endoftext|>"]
    words += [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[]),
    ).save_pretrained(path)
    return path


def test_features_are_the_models_own_whatever_the_batch(place: Path) -> None:
    clip, rng = Clip(place), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 32 + n, 3), np.uint8)) for n in range(35)]
    features = clip.pictures(pictures)
    assert features.shape == (35, clip.dim) and features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    model, processor = CLIPModel.from_pretrained(place), CLIPProcessor.from_pretrained(place)
    with torch.no_grad():
        pixels = processor(images=pictures[33], return_tensors="pt")
        seen = model.get_image_features(**pixels).pooler_output[0].numpy()
        tokens = processor(text="a black cat", return_tensors="pt")
        read = model.get_text_features(**tokens).pooler_output[0].numpy()
    assert features[33] == pytest.approx(seen / norm(seen), abs=1e-5)
    prompts = clip.prompts(["x", "a black cat", "a much longer text than this model can read"] * 15)
    assert prompts.shape == (45, clip.dim)
    assert prompts[1] == pytest.approx(read / norm(read), abs=1e-5)
    assert prompts[43] == pytest.approx(prompts[1], abs=1e-5)
    distance = pair_distance(prompts[:3], features[:3], features[3:6])
    assert distance.shape == (3, 3) and (distance >= 0).all() and (distance <= 2).all()


def test_nothing_has_no_features_and_no_model_is_an_error(place: Path, tmp_path: Path) -> None:
    clip = Clip(place)
    assert clip.prompts([]).shape == clip.pictures([]).shape == (0, clip.dim)
    with pytest.raises(OSError):
        Clip(tmp_path)
