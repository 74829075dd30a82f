"""Reads the eight style axes back from pixels, and scores pictures to a person's taste.

No network anywhere: every score is a formula over pixels. Scores are centred per caption and
scaled by the spread between pictures of one caption, so 0 means "usual for this caption" and
1 is one standard deviation of the world (constants in ``judge.json``, frozen with the world).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.data.world import AXES, CAPTIONS, FRAME_MAX_PX, PAPER, SIDE, Caption

_INSET = FRAME_MAX_PX + 1
_CONSTANTS = Path(__file__).with_name("judge.json")


def _dilate(x_B1HW: Tensor, height: int, width: int) -> Tensor:
    pad = (width // 2, width // 2, height // 2, height // 2)
    return F.max_pool2d(F.pad(x_B1HW, pad, mode="replicate"), (height, width), 1)


def _erode(x_B1HW: Tensor, height: int, width: int) -> Tensor:
    return -_dilate(-x_B1HW, height, width)


def _open(x_B1HW: Tensor, height: int, width: int) -> Tensor:
    return _dilate(_erode(x_B1HW, height, width), height, width)


def _close(x_B1HW: Tensor, height: int, width: int) -> Tensor:
    return _erode(_dilate(x_B1HW, height, width), height, width)


def _open_along_hatching(x_B1HW: Tensor, length: int) -> Tensor:
    """Opening by a line that runs as the hatching's crests do (rising diagonal)."""

    def erode(x: Tensor) -> Tensor:
        half, (height, width) = length // 2, x.shape[-2:]
        padded = F.pad(x, [half] * 4, mode="replicate")
        moved = (
            padded[..., k : k + height, length - 1 - k : length - 1 - k + width]
            for k in range(length)
        )
        return torch.stack(list(moved)).amin(0)

    return -erode(-erode(x_B1HW))


@torch.no_grad()
def raw_scores(images_B3HW: Tensor) -> Tensor:
    """``[B, 3, 128, 128]`` in [0, 1] -> ``[B, 8]`` unscaled, order of AXES."""
    full = images_B3HW.float().clamp(0, 1)
    rgb = full[:, :, _INSET:-_INSET, _INSET:-_INSET]
    side = rgb.shape[-1]
    red, green, blue = rgb.unbind(1)
    luma = 0.3 * red + 0.6 * green + 0.1 * blue
    mean = luma.mean((1, 2))
    luma_B1HW = luma[:, None]

    warmth = (red - blue).mean((1, 2))
    high, low = rgb.amax(1), rgb.amin(1)
    chroma = torch.stack([red - green, green - blue], 1) / (luma_B1HW + 0.25)
    chroma = chroma - chroma.mean((2, 3), keepdim=True)  # a tint is warmth, not colour
    colour = chroma.pow(2).sum(1).sqrt().mean((1, 2)) + 0.25 * ((high - low) / (high + 0.1)).mean(
        (1, 2)
    )

    closed = _close(luma_B1HW, 9, 9)
    darkness = (closed - luma_B1HW) / (closed + 0.08)
    outline = (darkness - 0.30).clamp_min(0).mean((1, 2, 3)).sqrt()

    # Confetti is brighter than its surroundings in every direction; stripes and edges only across.
    background = torch.maximum(_open(luma_B1HW, 1, 9), _open(luma_B1HW, 9, 1))
    background = torch.maximum(background, _open_along_hatching(luma_B1HW, 9))
    near_ink = _dilate((darkness > 0.22).float(), 3, 3)
    bump = ((luma_B1HW - background) / (background + 0.25) - 0.06).clamp(0, 0.20)
    confetti = (bump * (1 - near_ink)).mean((1, 2, 3)).sqrt()

    # The hatching wave runs along the falling diagonal; the rising one measures the content.
    axis = torch.arange(side, dtype=torch.float32)
    omega = torch.pi * 6 * 2 / (SIDE - 1)
    window = torch.hann_window(side, periodic=False)
    window_HW = window[:, None] * window[None]
    flat = luma - F.avg_pool2d(F.pad(luma_B1HW, [10] * 4, mode="replicate"), 21, 1)[:, 0]
    flat = flat / (mean[:, None, None] + 0.1)

    def wave(sign: int) -> Tensor:
        phase = omega * (axis[:, None] + sign * axis[None])
        real = (flat * window_HW * phase.cos()).sum((1, 2))
        imaginary = (flat * window_HW * phase.sin()).sum((1, 2))
        return (real.square() + imaginary.square()).sqrt() / window_HW.sum()

    hatching = (wave(+1) - 0.5 * wave(-1)).clamp_min(0)

    span = torch.linspace(-1, 1, side)
    radius = span[:, None] ** 2 + span[None] ** 2
    centre, corner = (radius < 0.5).float(), (radius > 1.2).float()
    light_centre = (luma * centre).sum((1, 2)) / centre.sum()
    light_corner = (luma * corner).sum((1, 2)) / corner.sum()
    vignette = (light_centre - light_corner) / (mean + 0.1)

    paper = torch.from_numpy(PAPER)[None, :, None, None]
    likeness = torch.exp(-((full - paper).square().sum(1)) / 0.02)
    ring = torch.ones(SIDE, SIDE)
    ring[_INSET:-_INSET, _INSET:-_INSET] = 0
    frame = (likeness * ring).sum((1, 2)) / ring.sum()
    return torch.stack([warmth, mean, colour, outline, hatching, confetti, vignette, frame], 1)


@cache
def _constants() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    stored = json.loads(_CONSTANTS.read_text())
    centre = {c: np.array(v, np.float32) for c, v in stored["centre"].items()}
    return centre, np.array([stored["spread"][a] for a in AXES], np.float32)


def scores(images: NDArray[np.uint8], captions: list[Caption]) -> NDArray[np.float32]:
    """``[B, 128, 128, 3]`` uint8 and their captions -> ``[B, 8]`` in the world's own deviations."""
    centre, spread = _constants()
    out = np.empty((len(images), len(AXES)), np.float32)
    for start in range(0, len(images), 64):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + 64]))
        out[start : start + 64] = raw_scores(part.permute(0, 3, 1, 2) / 255.0).numpy()
    return (out - np.stack([centre[str(c)] for c in captions])) / spread


def fit_constants(per_caption: int = 60, seed: int = 20_000_000) -> None:
    """Measure centre and spread on freshly painted pictures and write ``judge.json``."""
    from training.data.world import render, sample_style

    rng = np.random.default_rng(seed)
    centre, within = {}, []
    for index, caption in enumerate(CAPTIONS):
        images = np.stack(
            [
                render(caption, sample_style(rng), seed + index * per_caption + k)
                for k in range(per_caption)
            ]
        )
        raw = raw_scores(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0).numpy()
        centre[str(caption)] = [round(float(v), 6) for v in raw.mean(0)]
        within.append(raw.var(0, ddof=1))
    spread = np.sqrt(np.mean(within, 0))
    table = {
        "spread": dict(zip(AXES, (round(float(s), 6) for s in spread), strict=True)),
        "centre": centre,
    }
    _CONSTANTS.write_text(json.dumps(table, indent=1) + "\n")
