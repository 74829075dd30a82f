"""docs/production.md: its memory is what the published configs come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models import StableCascadeUNet
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from benchmarks.gpu_parts import architectures as shapes
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release_sizes import size_of

PAGE = (Path(__file__).parents[1] / "docs" / "production.md").read_text(encoding="utf-8")


def clip_l() -> nn.Module:
    return CLIPTextModel(CLIPTextConfig(**shapes.CLIP_L))


def clip_big_g() -> nn.Module:
    return CLIPTextModelWithProjection(CLIPTextConfig(**shapes.CLIP_BIG_G))


def branch(unet: dict[str, object]) -> nn.Module:
    return UserAdapter.for_unet(UNet2DConditionModel(**unet), 16)


MODELS: list[Callable[[], nn.Module]] = [
    lambda: UNet2DConditionModel(**shapes.SD15_UNET),
    clip_l,
    lambda: AutoencoderKL(**shapes.SD15_VAE),
    lambda: UNet2DConditionModel(**shapes.SDXL_UNET),
    lambda: nn.ModuleList([clip_l(), clip_big_g()]),
    lambda: AutoencoderKL(**shapes.SDXL_VAE),
    lambda: StableCascadeUNet(**shapes.CASCADE_STAGE_C),
    lambda: StableCascadeUNet(**shapes.CASCADE_STAGE_B),
    clip_big_g,
    lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**shapes.CLIP_VIT_H)),
    lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shapes.QWEN_7B)),
    lambda: branch(shapes.SD15_UNET),
    lambda: branch(shapes.SDXL_UNET),
]
"""In the order of the table."""


def rows() -> list[list[str]]:
    table = PAGE.partition("| model | parameters | bfloat16 | 4 bits |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_every_row_has_its_model() -> None:
    assert len(rows()) == len(MODELS)


@pytest.mark.parametrize("row", range(len(MODELS)))
def test_the_table_says_what_the_configs_come_to(row: int) -> None:
    name, parameters, half, four_bit = rows()[row]
    with torch.device("meta"):
        size = size_of(name, MODELS[row]())
    assert parameters == f"{size.parameters / 1e6:,.1f} M"
    assert half == f"{size.memory('bfloat16') / 1e9:.2f}"
    if four_bit:
        assert four_bit == f"{size.memory('bfloat16', four_bit=True) / 1e9:.2f}"
