"""Packed convolutions compute what they were made of, in every denoiser that is served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.packed import PackedConv2d, pack_convolutions
from ppd_serve.release import Release, load_release
from ppd_serve.settings import STUDIO
from tests.twins.releases import TWINS

IS_X86 = "AVX" in torch.backends.cpu.get_cpu_capability()
pytestmark = pytest.mark.skipif(
    not (IS_X86 and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no bfloat16 of oneDNN's",
)


@pytest.fixture(autouse=True)
def amx(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is packed is right on other processors, too, if slow."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    return monkeypatch


@pytest.fixture(params=["studio", *TWINS])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    return load_release(STUDIO) if request.param == "studio" else TWINS[request.param](tmp_path)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
def test_pictures_stay_as_they_are(release: Release, dtype: torch.dtype, tolerance: float) -> None:
    """Alone and together, through all stages."""
    width, height = release.defaults.sizes[0]
    wanted = [
        release.defaults.request("a boat", seed=seed, steps=3, width=width, height=height)
        for seed in range(3)
    ]

    def latents(backbone: Backbone) -> torch.Tensor:
        with Engine(backbone) as engine:
            alone = engine.submit(wanted[0]).result()
            together = [ticket.result() for ticket in engine.submit_all(wanted)]
        return torch.stack([torch.from_numpy(made.latents) for made in (alone, *together)])

    packed = release.load_backbone(dtype=dtype, packed=True)
    for stage in (packed, *packed.later):
        kinds = {type(module) for module in stage.denoiser.modules()}
        assert (PackedConv2d in kinds) == (dtype == torch.bfloat16)
        assert (nn.Conv2d in kinds) == (dtype == torch.float32)
    plain = latents(release.load_backbone(dtype=dtype))
    spread = plain.std()
    torch.testing.assert_close(latents(packed) / spread, plain / spread, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(1, 3, 8, 8), (2, 3, 5, 7), (9, 3, 33, 16)])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=(0, 1), bias=False),
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(3, 3, 3, groups=3, dilation=2),
    ],
    ids=str,
)
@torch.no_grad()
def test_of_any_form_and_size(conv: nn.Conv2d, size: tuple[int, ...]) -> None:
    conv = conv.bfloat16()
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = conv(x)
    for order in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(PackedConv2d(conv)(x.to(memory_format=order)), expected)


def test_without_amx_nothing_is_packed(amx: pytest.MonkeyPatch) -> None:
    """There a forward took ten times as long."""
    amx.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    backbone = load_release(STUDIO).load_backbone(dtype=torch.bfloat16, packed=True)
    assert PackedConv2d not in {type(module) for module in backbone.denoiser.modules()}


def test_what_cannot_be_packed_stays() -> None:
    reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect").bfloat16()
    network = nn.Sequential(reflecting, nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3).bfloat16())
    pack_convolutions(network)
    assert [type(child) for child in network] == [nn.Conv2d, nn.Conv2d, PackedConv2d]
