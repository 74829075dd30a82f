"""Guidance by hand: two forwards where it applies, one where it does not, diffusers' own steps."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from ppd_serve.diffusion.engine import Engine
from ppd_serve.errors import InvalidInput
from tests.diffusion.toy import CONFIG, DEFAULTS, Toy

shares = st.floats(0, 1)


def by_hand(steps: int, low: float, high: float, rescale: float) -> np.ndarray:
    toy, grid = Toy(), DDIMScheduler(**CONFIG)
    grid.set_timesteps(steps)
    x = torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(3))
    for i, t in enumerate(grid.timesteps):
        m = toy.denoise(x, t[None], toy.encode("prompt"))
        if low <= i / steps < high:
            away = toy.denoise(x, t[None], toy.encode("no"))
            m = rescale_noise_cfg(away + 5.0 * (m - away), m, guidance_rescale=rescale)
        x = grid.step(m, t, x).prev_sample
    return x[0].numpy()


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    interval=st.tuples(shares, shares).map(lambda pair: tuple(sorted(pair))),
    rescale=st.sampled_from([0.0, 0.7]),
)
def test_guidance_applies_inside_its_interval(
    steps: int, interval: tuple[float, float], rescale: float
) -> None:
    toy = Toy()
    request = DEFAULTS.request(
        "prompt",
        negative_prompt="no",
        steps=steps,
        seed=3,
        guidance_scale=5.0,
        guidance_rescale=rescale,
        guidance_interval=interval,
    )
    with Engine(toy) as engine:
        ours = engine.submit(request).result(30).latents
    expected = by_hand(steps, *interval, rescale)
    assert np.abs(ours - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    guided = [interval[0] <= i / steps < interval[1] for i in range(steps)]
    assert [shape[0] for shape in toy.forwards] == [1 + g for g in guided]


def test_rows_inside_and_outside_their_intervals_share_a_forward() -> None:
    wanted = [
        DEFAULTS.request("prompt", seed=seed, guidance_scale=4.0, guidance_interval=interval)
        for seed, interval in enumerate([(0.0, 1.0), (0.25, 0.75), (0.5, 1.0), (0.5, 0.5)])
    ]
    toy = Toy()
    engine = Engine(toy)
    tickets = engine.submit_all(wanted)
    with engine:
        together = [ticket.result(30).latents for ticket in tickets]
    assert [shape[0] for shape in toy.forwards] == [5, 6, 7, 6]
    for request, latents in zip(wanted, together, strict=True):
        with Engine(Toy()) as lonely:
            assert np.allclose(lonely.submit(request).result(30).latents, latents, atol=1e-5)


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)])
def test_refuses_what_is_no_interval(interval: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput) as refused:
        Engine(Toy()).submit(DEFAULTS.request("a", guidance_interval=interval))
    assert refused.value.field == "guidance_interval"
