"""A backbone with no weights: enough mathematics to tell rows apart, fast enough for many ticks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.schedules import SCHEDULES, Schedule
from ppd_serve.errors import InvalidInput

CONFIG = {"beta_schedule": "scaled_linear", "clip_sample": False}
DEFAULTS = Defaults(sizes=((32, 32), (32, 64)), steps=4, guidance_scale=2.0, sampler="ddim")


class Toy:
    """A prompt is a number (its length); ``nan`` spoils its own row, ``raise`` its whole forward,
    ``deadly`` the engine.

    ``forwards`` and ``decoded`` list the shapes of every batch, ``previewed`` how many were shown;
    ``before`` runs first in a forward.
    """

    device, dtype = torch.device("cpu"), torch.float32
    samplers = tuple(SCHEDULES)
    later = ()

    def __init__(self, before: Callable[[Tensor], None] = lambda x: None) -> None:
        self.denoiser = nn.Identity()
        self.before = before
        self.forwards: list[tuple[int, ...]] = []
        self.decoded: list[tuple[int, ...]] = []
        self.previewed: list[int] = []

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        if width % 8 or height % 8:
            raise InvalidInput("must be a multiple of 8", field="width")
        return 3, height // 8, width // 8

    def schedule(self, sampler: str, steps: int) -> Schedule:
        if sampler not in SCHEDULES:
            raise InvalidInput("unknown", field="sampler")
        return SCHEDULES[sampler](CONFIG, steps)

    def texts_found(self) -> tuple[int, int]:
        return 0, 0

    def encode(self, prompt: str | None) -> Text:
        prompt = prompt or ""
        if prompt == "unencodable":
            raise ValueError(prompt)
        if prompt == "deadly":
            raise SystemExit
        flag = {"nan": torch.nan, "raise": torch.inf}.get(prompt, 0.1 * len(prompt))
        return {"states": torch.full((1, 1, 1), flag)}

    def bucket(self, parts: int) -> int:
        return parts

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        self.forwards.append(tuple(x_BCHW.shape))
        self.before(x_BCHW)
        state = text["states"].view(-1, 1, 1, 1)
        if state.isinf().any():
            raise RuntimeError("a forward that fails")
        return torch.tanh(x_BCHW + state) + timesteps_B.view(-1, 1, 1, 1) / 1000

    def preview(self, x0_BCHW: Tensor) -> np.ndarray:
        self.previewed.append(len(x0_BCHW))
        return x0_BCHW.tanh().add(1).mul(127).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        self.decoded.append(tuple(latents_BCHW.shape))
        pixels = latents_BCHW.tanh().add(1).mul(127).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
