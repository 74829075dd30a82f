"""How a backbone's latents are noised, and what its denoiser is to predict of them.

As in its own training: by the scheduler config of the pipeline it came with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from diffusers import DDPMScheduler, DDPMWuerstchenScheduler
from torch import Tensor

STEPS = 1000  # in which recipes say their first timestep


class Noising(Protocol):
    def draw(self, rng: np.random.Generator, first: int) -> float:
        """A timestep, uniform from ``first`` (thousandths of the way to pure noise) on."""

    def noisy(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the denoiser is shown at timesteps ``t``."""

    def target(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What it is to answer."""


def noising_of(scheduler_config: Mapping[str, Any]) -> Noising:
    """ValueError for a model that cannot be trained here."""
    if scheduler_config.get("_class_name") == DDPMWuerstchenScheduler.__name__:
        return Cosine(scheduler_config)
    return Discrete(scheduler_config)


class Discrete:
    """Timesteps are the indices of a table of betas; epsilon or v-prediction."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._scheduler = DDPMScheduler.from_config(config)
        kind = self._scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type: cannot train {kind}")
        self._velocity = kind == "v_prediction"

    def draw(self, rng: np.random.Generator, first: int) -> int:
        return int(rng.integers(first, len(self._scheduler.betas)))

    def noisy(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return self._scheduler.add_noise(z_BCHW, noise_BCHW, t_B)

    def target(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        if not self._velocity:
            return noise_BCHW
        return self._scheduler.get_velocity(z_BCHW, noise_BCHW, t_B)


class Cosine:
    """Stable Cascade's: timesteps are shares of the way to pure noise; epsilon."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._scheduler = DDPMWuerstchenScheduler.from_config(config)

    def draw(self, rng: np.random.Generator, first: int) -> float:
        return float(rng.uniform(first / STEPS, 1))

    def noisy(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return self._scheduler.add_noise(z_BCHW, noise_BCHW, t_B)

    def target(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return noise_BCHW
