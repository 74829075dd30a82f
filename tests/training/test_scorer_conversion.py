"""Published checkpoints, through the file, the conversion and the loader, say what they said.

The networks are written down again in ``published.py``, tiny and random.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BlipConfig, CLIPVisionModelWithProjection

from tests.training.published import (
    PLACES,
    TEXT,
    VISION,
    Blip,
    OpenClip,
    bert_weights,
    published_head,
    read,
)
from tests.training.tiny_clip import (
    CONTEXT,
    LAYERS,
    OUT,
    PATCH,
    PROMPTS,
    SIDE,
    make_tiny_clip,
    pictures,
    pixels,
    shaken,
    tokenizer,
)
from training.evaluate.scorers import load_scorer
from training.evaluate.scorers.clip import letterbox
from training.evaluate.scorers.convert import (
    aesthetic,
    clip_weights,
    convert_image_reward,
    hpsv2,
    vision_weights,
)
from training.evaluate.scorers.image_reward import LONGEST, ImageRewardScorer
from training.evaluate.scorers.source import checkpoint


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_hpsv2_says_what_the_open_clip_checkpoint_says(
    clip_directory: Path, tmp_path: Path
) -> None:
    words = tokenizer()
    original = shaken(OpenClip(len(words)), 5)
    assert isinstance(original, OpenClip)
    published = tmp_path / "HPS.pt"
    torch.save({"epoch": 1, "state_dict": original.state_dict()}, published)
    hpsv2(str(published), str(clip_directory), tmp_path / "out")
    images = pictures(3)
    found = load_scorer("hpsv2", tmp_path / "out")(PROMPTS, images)
    wanted = []
    with torch.no_grad():
        for prompt, image in zip(PROMPTS, images, strict=True):
            ids = words(prompt, truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids
            seen = original.image(pixels([letterbox(image, SIDE)]))
            wanted.append(F.cosine_similarity(original.text(ids), seen)[0].item())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(found) > 0.01
    assert [p.suffix for p in (tmp_path / "out").iterdir() if p.stat().st_size > 50_000] == [
        ".safetensors"
    ]


def test_a_checkpoint_of_another_network_is_refused_by_name(
    clip_directory: Path, tmp_path: Path
) -> None:
    weights = OpenClip(300).state_dict()
    del weights["ln_final.weight"]
    torch.save(weights, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"lacks text_model\.final_layer_norm\.weight"):
        hpsv2(str(tmp_path / "short.pt"), str(clip_directory), tmp_path / "out")
    assert "visual_projection.weight" in clip_weights(weights)


# --- the linear head: LAION aesthetic ---------------------------------------------------------


def test_aesthetic_is_the_published_head_on_the_unit_embedding(
    clip_directory: Path, tmp_path: Path
) -> None:
    head = published_head(OUT, 7)
    published = tmp_path / "head.pth"
    torch.save({f"layers.{k}": v for k, v in head.state_dict().items()}, published)
    aesthetic(str(published), str(clip_directory), tmp_path / "out")
    images = pictures(4, (40, 64))
    found = load_scorer("aesthetic", tmp_path / "out")([""] * 4, images)
    with torch.no_grad():
        tower = CLIPVisionModelWithProjection.from_pretrained(clip_directory).eval()
        seen = tower(pixels(images)).image_embeds
        wanted = head(seen / seen.norm(dim=-1, keepdim=True))[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert np.ptp(found) > 0.01
    other = load_scorer("aesthetic", tmp_path / "out")(["a", "b", "c", "d"], images)
    np.testing.assert_array_equal(found, other)


# --- ImageReward ------------------------------------------------------------------------------


def test_image_reward_says_what_the_published_checkpoint_says(tmp_path: Path) -> None:
    words = tokenizer(("[CLS]", "[SEP]"))
    words.save_pretrained(tmp_path / "bert")
    vision, text, head = shaken(Blip(), 9), bert_weights(len(words)), published_head(TEXT, 13)
    state = {f"blip.visual_encoder.{k}": v for k, v in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.items()}
    state |= {f"mlp.layers.{k}": v for k, v in head.state_dict().items()}
    state |= {f"blip.{side}_proj.weight": torch.zeros(4, 4) for side in ("vision", "text")}
    published = tmp_path / "ImageReward.pt"
    torch.save(state, published)
    config = BlipConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": TEXT, "intermediate_size": 32,
            "num_hidden_layers": LAYERS, "num_attention_heads": 2,
            "max_position_embeddings": PLACES, "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": VISION, "intermediate_size": 48, "num_hidden_layers": LAYERS,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
            "layer_norm_eps": 1e-6,
        },
    )  # fmt: skip
    convert_image_reward(str(published), str(tmp_path / "bert"), tmp_path / "out", config)

    images = pictures(3, (60, 48), seed=1)
    scorer = load_scorer("imagereward", tmp_path / "out")
    found = scorer(PROMPTS, images)
    wanted = []
    with torch.no_grad():
        for prompt, image in zip(PROMPTS, images, strict=True):
            ids = words(prompt, truncation=True, max_length=35, return_tensors="pt").input_ids
            first = read(text, ids, vision(pixels([image])))[:, 0]
            wanted.append(((head(first) - 0.16717362830052426) / 1.0333394966054072).item())
    assert len(words(PROMPTS[2]).input_ids) > LONGEST
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert np.ptp(found) > 0.01

    halved = load_scorer("imagereward", tmp_path / "out", dtype=torch.bfloat16)
    assert isinstance(halved, ImageRewardScorer)
    assert halved.model.text_model.dtype == torch.bfloat16
    assert halved.model.head.layers[0].weight.dtype == torch.float32
    np.testing.assert_allclose(halved(PROMPTS, images), found, atol=0.1 * np.ptp(found) + 0.1)
    assert vision_weights(state).keys() == scorer.model.vision_model.state_dict().keys()


class Payload:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("touched"),)


def test_a_pickle_that_would_act_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "bad.pt")
    Path("worse.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(ValueError, match=f"{name} is no file of plain weights"):
            checkpoint(name)
    assert not Path("touched").exists()
    torch.save({"state_dict": {"step": 3}}, "numbers.pt")
    with pytest.raises(ValueError, match="holds no table of tensors"):
        checkpoint("numbers.pt")
