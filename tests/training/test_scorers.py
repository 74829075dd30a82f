"""Scorers of the published classes, tiny and random, against the formulas written out once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.training.tiny_clip import CONTEXT, PROMPTS, make_tiny_clip, pictures, pixels, tokenizer
from training.evaluate.scorers import SCORERS, load_scorer
from training.evaluate.scorers.base import BATCH
from training.evaluate.scorers.clip import ClipScorer, letterbox
from training.evaluate.scorers.source import checkpoint


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


def cosines(path: Path, prompts: list[str], images: list[Image.Image]) -> Tensor:
    """One pair at a time, through the stock model: no batch, no padding, our own pixels."""
    model = CLIPModel.from_pretrained(path).eval()
    words = tokenizer()
    found = []
    with torch.no_grad():
        for prompt, image in zip(prompts, images, strict=True):
            ids = words(prompt, truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids
            out = model(input_ids=ids, pixel_values=pixels([image]))
            found.append(F.cosine_similarity(out.text_embeds, out.image_embeds)[0])
    return torch.stack(found)


# --- CLIP, PickScore, HPSv2 ------------------------------------------------------------------


def test_clip_is_the_cosine(clip_directory: Path) -> None:
    images = pictures(3, (60, 48))
    found = load_scorer("clip", clip_directory)(PROMPTS, images)
    assert found.dtype == np.float32 and found.shape == (3,)
    np.testing.assert_allclose(found, cosines(clip_directory, PROMPTS, images), atol=1e-5)
    assert np.ptp(found) > 0.01


def test_pickscore_is_the_cosine_times_its_own_temperature(clip_directory: Path) -> None:
    images = pictures(3)
    scale = CLIPModel.from_pretrained(clip_directory).logit_scale.exp().item()
    assert abs(scale - 1) > 0.01
    found = load_scorer("pickscore", clip_directory)(PROMPTS, images)
    np.testing.assert_allclose(found, scale * cosines(clip_directory, PROMPTS, images), atol=1e-5)


def test_hpsv2_sees_the_whole_picture(clip_directory: Path) -> None:
    wide = pictures(3, (64, 32))
    squares = [Image.new("RGB", (32, 32)) for _ in wide]
    for square, image in zip(squares, wide, strict=True):
        square.paste(image.resize((32, 16), Image.BICUBIC), (0, 8))
    found = load_scorer("hpsv2", clip_directory)(PROMPTS, wide)
    np.testing.assert_allclose(found, cosines(clip_directory, PROMPTS, squares), atol=1e-5)
    assert np.abs(found - load_scorer("clip", clip_directory)(PROMPTS, wide)).max() > 1e-3


def test_letterbox_keeps_every_edge() -> None:
    tall = Image.new("RGB", (10, 40), "white")
    boxed = np.asarray(letterbox(tall, 20)).sum(-1) > 0
    assert boxed.sum(0).tolist() == [0] * 7 + [20] * 5 + [0] * 8
    assert letterbox(Image.new("RGB", (400, 1)), 20).size == (20, 20)


def test_features_are_the_image_tower_at_unit_length(clip_directory: Path) -> None:
    scorer = load_scorer("clip", clip_directory)
    assert isinstance(scorer, ClipScorer)
    images = pictures(3)
    with torch.no_grad():
        tower = CLIPModel.from_pretrained(clip_directory).eval()
        seen = tower.get_image_features(pixels(images)).pooler_output
    np.testing.assert_allclose(scorer.features(images), F.normalize(seen, dim=-1), atol=1e-5)


# --- the interface and its edges --------------------------------------------------------------


def test_batches_change_nothing(clip_directory: Path) -> None:
    scorer = load_scorer("clip", clip_directory)
    images = pictures(BATCH + 3)
    prompts = [PROMPTS[i % 2] for i in range(len(images))]
    together = scorer(prompts, images)
    alone = [scorer([p], [i])[0] for p, i in zip(prompts, images, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert scorer([], []).shape == (0,)


def test_a_greyscale_or_transparent_picture_is_a_picture(clip_directory: Path) -> None:
    scorer = load_scorer("clip", clip_directory)
    colour = pictures(1)[0]
    grey = colour.convert("L")
    found = scorer(["a"] * 3, [grey, grey.convert("RGB"), colour.convert("RGBA")])
    assert found[0] == found[1]
    assert found[2] == pytest.approx(scorer(["a"], [colour])[0], abs=1e-6)


def test_prompts_and_pictures_come_in_pairs(clip_directory: Path) -> None:
    for name in ("clip", "pickscore", "hpsv2"):
        with pytest.raises(ValueError, match="prompts: 2 for 3 images"):
            load_scorer(name, clip_directory)(["a", "b"], pictures(3))


def test_one_image_processor_wherever_it_runs(clip_directory: Path) -> None:
    scorer = load_scorer("clip", clip_directory)
    assert isinstance(scorer, ClipScorer)  # torchvision installed or not, the figures are the same
    assert type(scorer.processor) is CLIPImageProcessorPil


@pytest.mark.parametrize("name", SCORERS)
def test_a_source_without_safetensors_is_refused(
    name: str, clip_directory: Path, tmp_path: Path
) -> None:
    for file in clip_directory.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = CLIPModel.from_pretrained(clip_directory).state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="source: "):
        load_scorer(name, tmp_path)


@pytest.mark.parametrize("name", ["aesthetic", "imagereward"])
def test_a_plain_clip_is_no_other_scorer(name: str, clip_directory: Path) -> None:
    with pytest.raises(ValueError, match="source: "):
        load_scorer(name, clip_directory)


def test_unknown_names_and_places_are_named(clip_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scorer: beauty is none of clip, pickscore"):
        load_scorer("beauty", clip_directory)
    with pytest.raises(ValueError, match="owner/name@revision"):
        load_scorer("clip", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="owner/name@revision"):
        load_scorer("clip", "openai/clip-vit-large-patch14")
    with pytest.raises(ValueError, match="name the file"):
        checkpoint("THUDM/ImageReward@main")
