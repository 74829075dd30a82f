"""What moves the weights: the optimizer, its learning rate over a run, and the averaged weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "adamw8bit", "adafactor"]


def new_optimizer(
    name: OptimizerName,
    parameters: list[nn.Parameter],
    learning_rate: float,
    *,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW, AdamW with 8-bit moments (bitsandbytes), or Adafactor at an absolute rate (no
    moments to keep at all; what Diffusion-DPO trained SDXL with)."""
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, learning_rate, betas=betas, weight_decay=weight_decay)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters, learning_rate, weight_decay=weight_decay,
            scale_parameter=False, relative_step=False,
        )  # fmt: skip
    return torch.optim.AdamW(
        parameters, learning_rate, betas=betas, weight_decay=weight_decay, fused=True
    )


def cosine(step: int, total: int, *, warmup: int = 100, hold: float = 0.4, began: int = 0) -> float:
    """Learning-rate factor: a plateau for ``hold`` of the run (1 = constant), cosine down to 2 %;
    and a warm-up from ``began``, the step at which the optimizer knew nothing yet."""
    warm = min(1.0, (step - began + 1) / max(warmup, 1))
    done = step / max(total, 1)
    if done < hold:
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, (done - hold) / (1 - hold)))))


class Ema:
    """Exponential moving average of parameters, with a warm-up of the decay."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [p.detach() for p in self.parameters], alpha=1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live and the averaged weights (twice = back again)."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
