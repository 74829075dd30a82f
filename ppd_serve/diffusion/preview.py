"""What a picture will be, for the price of one small convolution.

Latents look much like the picture they stand for, so a linear map shows it: each cell and its
neighbours to a few pixels. The map is fitted to the autoencoder itself, by least squares over
drawings of its own, so it needs no numbers that belong to one checkpoint.

Shapes: N drawings, B rows, C·h·w a latent, k pixels of a preview along a cell's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DRAWINGS, CELLS = 8, 16
ZOOM = 4  # k, at most
RIDGE = 1e-5
AROUND = 3  # cells seen along a side


@dataclass(frozen=True)
class LinearPreview:
    """``weight`` ``[C·3·3 + 1, 3·k·k]``: the last line is what is there without any latent."""

    weight: Tensor
    zoom: int

    def __call__(self, x0_BCHW: Tensor) -> np.ndarray:
        """Estimates of clean latents to small pictures, uint8 ``[B, k·h, k·w, 3]``."""
        B, _, h, w = x0_BCHW.shape
        cells = _with_neighbours(x0_BCHW.float()) @ self.weight.to(x0_BCHW.device)
        pixels = F.pixel_shuffle(cells.view(B, h, w, -1).permute(0, 3, 1, 2), self.zoom)
        pixels = pixels.clamp(0, 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@torch.inference_mode()
def fit_preview(
    to_latents: Callable[[Tensor], Tensor], decode: Callable[[Tensor], np.ndarray], scale: int
) -> LinearPreview:
    """Draw, encode, decode, and fit the decoder's small pictures to the latents.

    ``to_latents`` and ``decode`` are a backbone's; ``scale`` is the pixels along a cell's side.
    """
    zoom = math.gcd(scale, ZOOM)
    latents = to_latents(_drawings(DRAWINGS, CELLS * scale))
    decoded = torch.from_numpy(decode(latents)).permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(decoded, scale // zoom)
    target = F.pixel_unshuffle(small, zoom).permute(0, 2, 3, 1).flatten(0, 2)
    cells = _with_neighbours(latents.double().cpu())
    ridge = RIDGE * len(cells) * torch.eye(cells.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(cells.T @ cells + ridge, cells.T @ target.double())
    return LinearPreview(weight.float(), zoom)


def _with_neighbours(latents_BCHW: Tensor) -> Tensor:
    """``[B·h·w, C·3·3 + 1]``: what is around each cell, zero beyond the edge, and a one."""
    around = F.unfold(latents_BCHW, AROUND, padding=AROUND // 2).transpose(1, 2).flatten(0, 1)
    return torch.cat([around, torch.ones_like(around[:, :1])], 1)


def _drawings(n: int, side: int) -> Tensor:
    """Seeded pictures in [-1, 1] ``[n, 3, side, side]``: layers of soft colour with curved edges,
    finer from layer to layer, so that all colours and directions occur."""
    generator = torch.Generator().manual_seed(0)

    def soft(channels: int, grain: int) -> Tensor:
        noise = torch.rand(n, channels, grain, grain, generator=generator)
        return F.interpolate(noise, size=(side, side), mode="bicubic")

    picture = soft(3, 2)
    for grain in (3, 4, 6, 9, 14):
        covered = soft(1, grain) > 0.55
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        picture = torch.where(covered, colour + 0.3 * (soft(3, grain) - 0.5), picture)
    return picture.clamp(0, 1) * 2 - 1
