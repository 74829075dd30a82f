"""The GPU benchmark runs to its end on a CPU, in miniature; its models are the published ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models import StableCascadeUNet
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from benchmarks.gpu import MODELS, Part, Size, main
from benchmarks.gpu_parts import architectures as shapes
from benchmarks.gpu_parts.measure import tflop
from ppd_serve.release_sizes import size_of

pytestmark = pytest.mark.slow

PUBLISHED = {
    "SD 1.5's UNet": (UNet2DConditionModel, shapes.SD15_UNET, 859_520_964),
    "SDXL's UNet": (UNet2DConditionModel, shapes.SDXL_UNET, 2_567_463_684),
    "their autoencoder": (AutoencoderKL, shapes.SDXL_VAE, 83_653_863),
    "Stable Cascade's Stage C": (StableCascadeUNet, shapes.CASCADE_STAGE_C, 3_589_103_632),
    "Stable Cascade's Stage B": (StableCascadeUNet, shapes.CASCADE_STAGE_B, 1_562_941_136),
}
TEXTS = {
    "CLIP L": (CLIPTextModel, shapes.CLIP_L, 123_060_480),
    "CLIP bigG": (CLIPTextModelWithProjection, shapes.CLIP_BIG_G, 694_659_840),
}


def run(part: Part, model: str, out: Path) -> dict[str, Any]:
    main([model], [part], Size.toy, "cpu", [1, 2], 1, out)
    (file,) = set(out.glob("*.json")) - {out / "report.json"}
    assert json.loads((out / "report.json").read_text()).keys() == {file.stem}
    section: dict[str, Any] = json.loads(file.read_text())
    assert {"machine", "device", "matmul peak, TFLOP/s", "tables"} <= section.keys()
    return dict(section["tables"])


@pytest.mark.parametrize("model", MODELS)
def test_pictures_are_right(model: str, tmp_path: Path) -> None:
    tables = run(Part.correct, model, tmp_path)
    missed = [
        (name, told)
        for table in tables.values()
        for name, told in table.items()
        if told.get("reached") is False
    ]
    assert not missed
    assert tables.keys() == {"the same picture as stock diffusers", "users in one batch"}
    told = tables["users in one batch"]
    neighbours = told["float32: together against alone, share of the latent"]["value"]
    assert told["how far two users' pictures are apart"]["value"] > 100 * neighbours


@pytest.mark.parametrize("model", MODELS)
def test_pictures_have_their_price(model: str, tmp_path: Path) -> None:
    tables = run(Part.pictures, model, tmp_path)
    assert set(tables) == {
        "stock diffusers", "our engine", "cost of the user branch", "joining at any step",
    }  # fmt: skip
    told = tables["our engine"]
    goals = {name.partition(",")[0]: each["goal"] for name, each in told.items() if "goal" in each}
    assert goals == {"share of the matmul peak": "≥ 0.45", "times faster than stock": "≥ 2"}
    for count in (1, 2):
        a_picture = told[f"s a picture, {count} together"]["value"]
        assert told[f"pictures a second, {count} together"]["value"] == pytest.approx(
            1 / a_picture, rel=1e-2
        )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", [Part.compiled, Part.forwards, Part.training])
def test_the_other_parts_run(part: Part, model: str, tmp_path: Path) -> None:
    figures = [told for table in run(part, model, tmp_path).values() for told in table.values()]
    assert len(figures) > 5


def test_reading(tmp_path: Path) -> None:
    tables = run(Part.reading, "", tmp_path)
    assert set(tables) == {"reading four pairs, bfloat16", "reading four pairs, 4-bit"}
    for table in tables.values():
        states = table["1 at once: s a user, states alone"]["value"]
        profile = table["1 at once: s a user, and a profile of 128 tokens"]["value"]
        assert 0 < states < profile


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_published_size(name: str) -> None:
    cls, config, parameters = PUBLISHED[name]
    with torch.device("meta"):
        assert size_of(name, cls(**config)).parameters == parameters


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_have_the_published_size(name: str) -> None:
    cls, config, parameters = TEXTS[name]
    with torch.device("meta"):
        assert size_of(name, cls(CLIPTextConfig(**config))).parameters == parameters


def test_the_vlm_has_the_published_size() -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shapes.QWEN_7B))
    assert size_of("vlm", model).parameters == 8_292_166_656


def test_an_sdxl_picture_is_the_work_that_goals_are_made_of() -> None:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**shapes.SDXL_UNET), AutoencoderKL(**shapes.SDXL_VAE)
        x, t, states = torch.randn(1, 4, 128, 128), torch.ones(1), torch.randn(1, 77, 2048)
        told = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
        forward = tflop(lambda: unet(x, t, states, added_cond_kwargs=told))
        decoding = tflop(lambda: vae.decode(x))
    assert 2 * 30 * forward + decoding == pytest.approx(416, rel=0.01)


def test_it_needs_neither_ray_nor_faiss() -> None:
    program = "import sys; sys.modules.update(ray=None, faiss=None); import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
