"""Stock diffusers begin with the noise that our rows begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.pipelines.stable_cascade import (
    pipeline_stable_cascade,
    pipeline_stable_cascade_prior,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl
from diffusers.schedulers import scheduling_ddpm_wuerstchen
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

_DRAW = (
    pipeline_stable_diffusion, pipeline_stable_diffusion_xl, pipeline_stable_cascade_prior,
    pipeline_stable_cascade, scheduling_ddpm_wuerstchen,
)  # fmt: skip


@contextmanager
def noise_as_ours() -> Iterator[None]:
    """In float32 and then rounded. Stock diffusers draw in the model's dtype, and one generator
    gives other numbers in bfloat16: it would be another picture."""
    with ExitStack() as patches:
        for module in _DRAW:
            patches.enter_context(patch.object(module, "randn_tensor", _rounded))
        yield


def _rounded(*shape: Any, dtype: torch.dtype, **chosen: Any) -> Tensor:
    return randn_tensor(*shape, dtype=torch.float32, **chosen).to(dtype)
