"""What is trained on is what is sampled: the tables' own estimate of a clean latent finds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMWuerstchenScheduler

from ppd_serve.diffusion.schedules import ddim
from ppd_serve.diffusion.wuerstchen import wuerstchen
from training.noising import Cosine, Discrete, noising_of

V = dict(DDIMScheduler(prediction_type="v_prediction", clip_sample=False).config)
EPSILON = dict(DDIMScheduler(clip_sample=False).config)
COSINE = {"_class_name": "DDPMWuerstchenScheduler", **DDPMWuerstchenScheduler(scaler=2.0).config}


@pytest.mark.parametrize(
    ("config", "table"), [(V, ddim), (EPSILON, ddim), (COSINE, wuerstchen)], ids=["v", "ε", "cos"]
)
def test_the_sampler_finds_what_was_noised(config: dict[str, Any], table: Any) -> None:
    noising = noising_of(config)
    z, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for step in table(config, 7).steps:
        t = torch.tensor([step.timestep])
        x0 = step.p * noising.noisy(z, noise, t) + step.q * noising.target(z, noise, t)
        assert torch.allclose(x0, z, atol=1e-4)


def test_timesteps_are_drawn_from_the_first_on() -> None:
    for noising, most, kind in ((noising_of(EPSILON), 999, int), (noising_of(COSINE), 1.0, float)):
        rng = np.random.default_rng(0)
        drawn = [noising.draw(rng, 250) for _ in range(500)]
        assert {type(t) for t in drawn} == {kind}
        assert 0.25 * most <= min(drawn) < 0.27 * most and 0.98 * most < max(drawn) <= most
    assert isinstance(noising_of(COSINE), Cosine) and isinstance(noising_of(V), Discrete)


def test_refuses_what_it_cannot_train() -> None:
    with pytest.raises(ValueError, match="prediction_type"):
        noising_of(DDIMScheduler(prediction_type="sample").config)
