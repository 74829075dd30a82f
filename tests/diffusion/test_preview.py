"""Previews: where they were asked for, of nobody's harm, and like the picture they announce."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.preview import ZOOM, fit_preview
from ppd_serve.diffusion.ticket import Progress
from ppd_serve.errors import InvalidInput
from ppd_serve.release import Release
from tests.diffusion.toy import DEFAULTS, Toy

WAIT = 120


def seen(engine: Engine, **chosen: Any) -> list[Progress]:
    """Everything that is reported of a request that waits in ``engine``."""
    found: list[Progress] = []
    engine.submit(DEFAULTS.request("a", steps=5, **chosen)).on_step(found.append)
    return found


def test_every_so_many_steps() -> None:
    engine = Engine(Toy())
    none, each, second = seen(engine), seen(engine, preview_every=1), seen(engine, preview_every=2)
    with engine:
        pass
    assert [p.step for p in each if p.preview is not None] == [1, 2, 3, 4, 5]
    assert [p.step for p in second if p.preview is not None] == [2, 4]
    assert [p.step for p in none] == [1, 2, 3, 4, 5] and all(p.preview is None for p in none)
    preview = each[0].preview
    assert preview is not None and preview.shape == (4, 4, 3) and preview.dtype == np.uint8


def test_a_preview_that_fails_is_left_out() -> None:
    class Blind(Toy):
        def preview(self, x0_BCHW: Tensor) -> np.ndarray:
            raise RuntimeError("no preview today")

    engine = Engine(Blind())
    reports = seen(engine, preview_every=1)
    ticket = engine.submit(DEFAULTS.request("bb"))
    with engine:
        ticket.result(WAIT)
    assert [(p.step, p.preview) for p in reports] == [(i, None) for i in range(1, 6)]


def test_refuses_to_count_backwards() -> None:
    with pytest.raises(InvalidInput) as refused:
        Engine(Toy()).submit(DEFAULTS.request("a", preview_every=-1))
    assert refused.value.field == "preview_every"


@pytest.mark.parametrize(("scale", "zoom"), [(8, 4), (6, 2), (3, 1)])
def test_finds_the_map_of_an_autoencoder_that_has_one(scale: int, zoom: int) -> None:
    """Latents that are a mixture of the small picture's own pixels: the fit can only be exact."""
    mix = torch.randn(
        3 * zoom**2, 3 * zoom**2, generator=torch.Generator().manual_seed(0)
    ) + 3 * torch.eye(3 * zoom**2)

    def to_latents(pixels: Tensor) -> Tensor:
        small = F.pixel_unshuffle(F.avg_pool2d(pixels, scale // zoom), zoom)
        return torch.einsum("oc,bchw->bohw", mix, small)

    def decode(latents: Tensor) -> np.ndarray:
        small = F.pixel_shuffle(torch.einsum("oc,bchw->bohw", mix.inverse(), latents), zoom)
        whole = F.interpolate(small, scale_factor=scale // zoom)
        return (
            ((whole + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        )

    generator = torch.Generator().manual_seed(1)
    pixels = F.interpolate(torch.rand(2, 3, 5, 7, generator=generator), size=(scale * 4, scale * 6))
    latents = to_latents(pixels * 2 - 1)
    preview = fit_preview(to_latents, decode, scale)(latents)
    expected = F.avg_pool2d(pixels, scale // zoom).mul(255).permute(0, 2, 3, 1).numpy()
    assert preview.shape == expected.shape and preview.dtype == np.uint8
    assert np.abs(preview - expected).max() < 3


def test_the_last_preview_is_like_the_picture(studio: Release, studio_backbone: Backbone) -> None:
    """Correlations with the picture made small, measured on the shipped release at 8 steps: mean
    0.925, least 0.82 of eight pictures."""
    prompts = studio.manifest.example_prompts[:3]
    engine = Engine(studio_backbone)
    last: dict[int, np.ndarray] = {}

    def keep(progress: Progress, i: int) -> None:
        if progress.preview is not None:
            last[i] = progress.preview

    tickets = []
    for i, prompt in enumerate(prompts):
        tickets.append(
            engine.submit(studio.defaults.request(prompt, seed=i, steps=4, preview_every=4))
        )
        tickets[i].on_step(lambda progress, i=i: keep(progress, i))
    with engine:
        pictures = [ticket.result(WAIT).pixels for ticket in tickets]
    small = [
        F.avg_pool2d(torch.from_numpy(p).permute(2, 0, 1).float(), 8 // ZOOM).permute(1, 2, 0)
        for p in pictures
    ]
    assert last[0].shape == tuple(small[0].shape) == (64, 64, 3)
    alike = np.corrcoef(
        [last[i].ravel() for i in range(3)], [picture.numpy().ravel() for picture in small]
    )[:3, 3:]
    assert alike.diagonal().min() > 0.7 and alike.diagonal().mean() > 0.85, alike
    assert (alike.argmax(1) == np.arange(3)).all(), "each is like its own picture most"
