"""Stable Cascade's sampler as a table: DDPM on a cosine of continuous time, from 1 down to 0.

diffusers' ``DDPMWuerstchenScheduler`` (Würstchen, arXiv 2306.00637; the cosine is that of arXiv
2102.09672). Its step is the ancestral one of ``schedules.ddpm`` with the posterior's variance; what
differs is the grid: a timestep is the share of the noise still to come, which is also what the
model is told, and ᾱ stays within [0.0001, 0.9999], its class's own bounds.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers import DDPMWuerstchenScheduler

from ppd_serve.diffusion.grids import Config
from ppd_serve.diffusion.schedules import Schedule, Step
from ppd_serve.errors import ReleaseError

NAME = "wuerstchen"
CLASS = DDPMWuerstchenScheduler.__name__


def wuerstchen(config: Config, steps: int) -> Schedule:
    """The table of a ``DDPMWuerstchenScheduler`` of this config; the model predicts the noise.
    ReleaseError for another class's."""
    if config.get("_class_name") != CLASS:
        raise ReleaseError(f"{NAME}: {config.get('_class_name')} is not supported, only {CLASS}")
    grid = DDPMWuerstchenScheduler.from_config(config)
    grid.set_timesteps(steps)
    times = grid.timesteps
    nothing, one = torch.zeros(len(times)), torch.ones(len(times))
    # The class tells ᾱ only by what it does with it.
    alphas = grid.add_noise(one, nothing, times).double().square().tolist()
    lines = []
    for t, (now, to) in zip(times.tolist(), pairwise(alphas), strict=False):
        alpha = now / to
        variance = (1 - alpha) * (1 - to) / (1 - now)
        lines.append(
            Step(
                t,
                p=1 / math.sqrt(now),
                q=-math.sqrt((1 - now) / now),
                a=math.sqrt(alpha) * (1 - to) / (1 - now),
                b=math.sqrt(to) * (1 - alpha) / (1 - now),
                d=math.sqrt(variance),
            )
        )
    return Schedule((*lines[:-1], lines[-1]._replace(d=0.0)))
