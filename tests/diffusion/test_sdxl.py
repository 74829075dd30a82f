"""What SDXL has that Stable Diffusion has not; the rest is in ``test_twins.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from ppd_serve.diffusion.backbone import load_backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.sdxl import StableDiffusionXL
from ppd_serve.errors import ReleaseError
from tests.twins.sdxl import FIRST, POOLED, SECOND, make_sdxl, sdxl_pipeline


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdxl(tmp_path_factory.mktemp("sdxl"), make_encoder=None).backbone_path


@pytest.fixture(scope="module")
def backbone(path: Path) -> StableDiffusionXL:
    loaded = load_backbone(path)
    assert isinstance(loaded, StableDiffusionXL)
    return loaded


def latents(backbone: StableDiffusionXL, negative_prompt: str = "") -> np.ndarray:
    chosen = {"negative_prompt": negative_prompt, "width": 64, "height": 64, "steps": 3, "seed": 2}
    with Engine(backbone) as engine:
        return engine.submit(backbone.usual.request("a house", **chosen)).result(60).latents


def test_words_are_read_by_both_encoders(path: Path, backbone: StableDiffusionXL) -> None:
    stock = DiffusionPipeline.from_pretrained(path)
    for prompt in ("a house", "", "夜の海 🎨 " * 9):
        states, no_states, pooled, no_pooled = stock.encode_prompt(prompt)
        ours, nothing = backbone.encode(prompt), backbone.encode(None)
        assert ours["states"].shape == (1, 16, FIRST + SECOND)
        assert ours["pooled"].shape == (1, POOLED)
        assert torch.equal(ours["states"], states) and torch.equal(ours["pooled"], pooled)
        assert torch.equal(nothing["states"], no_states)
        assert torch.equal(nothing["pooled"], no_pooled)


def test_no_prompt_is_not_an_empty_one(backbone: StableDiffusionXL) -> None:
    assert all(not x.any() for x in backbone.encode(None).values())
    assert all(x.any() for x in backbone.encode("").values())
    pipeline = sdxl_pipeline()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    other = StableDiffusionXL(pipeline)
    for key, x in other.encode("").items():
        assert torch.equal(other.encode(None)[key], x)
    assert np.abs(latents(backbone) - latents(other)).max() > 1e-3
    assert np.array_equal(latents(backbone, "a cat"), latents(other, "a cat"))


def test_the_model_is_told_the_size(
    backbone: StableDiffusionXL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, any number would pass the comparison with stock diffusers."""
    assert backbone._time_ids(64, 96).tolist() == [[64, 96, 0, 0, 64, 96]]
    honest = latents(backbone)
    cropped = torch.tensor([[64.0, 64.0, 8.0, 8.0, 64.0, 64.0]])
    monkeypatch.setattr(backbone, "_time_ids", lambda height, width: cropped)
    assert np.abs(latents(backbone) - honest).max() > 1e-3


def loud_pipeline() -> StableDiffusionXLPipeline:
    """Its decoder's first layer reaches beyond float16, as SDXL's own does further on."""
    pipeline = sdxl_pipeline()
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(1000)
        pipeline.vae.decoder.conv_in.bias.fill_(60_000)
    return pipeline


def test_float16_decodes_in_float32() -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = StableDiffusionXL(loud_pipeline()).decode(x)
    half = StableDiffusionXL(loud_pipeline().to(torch.float16))
    assert half.dtype == torch.float16
    assert exact.std() > 1
    assert np.abs(half.decode(x).astype(int) - exact.astype(int)).max() <= 1
    assert half.to_latents(torch.zeros(1, 3, 64, 64)).isfinite().all()
    assert half.preview(x).shape == (1, 32, 32, 3)
    assert np.isfinite(latents(half)).all()


def test_other_autoencoders_stay_as_they_are() -> None:
    """bfloat16 has float32's range; and there are autoencoders mended for float16."""
    assert StableDiffusionXL(sdxl_pipeline().to(torch.bfloat16))._vae.dtype == torch.bfloat16
    mended = sdxl_pipeline().to(torch.float16)
    mended.vae.register_to_config(force_upcast=False)
    assert StableDiffusionXL(mended)._vae.dtype == torch.float16


def test_models_it_would_draw_wrongly_are_refused(tmp_path: Path) -> None:
    for changed, why in [
        (sdxl_pipeline(projection_class_embeddings_input_dim=5 * 8 + POOLED), "refiner"),
        (sdxl_pipeline(time_cond_proj_dim=8), "time_cond_proj_dim"),
    ]:
        with pytest.raises(ReleaseError, match=why):
            StableDiffusionXL(changed)
    refiner = sdxl_pipeline()
    refiner.register_modules(text_encoder=None, tokenizer=None)
    refiner.save_pretrained(tmp_path)
    with pytest.raises(ReleaseError, match="refiner"):
        load_backbone(tmp_path)
    off_centre = sdxl_pipeline()
    off_centre.vae.register_to_config(latents_mean=[0.0, 1.0, 0.0, 0.0])
    with pytest.raises(ReleaseError, match="latents_mean"):
        StableDiffusionXL(off_centre)
