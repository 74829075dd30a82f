"""Signs of a picture that was decoded badly, read from pixels; nothing was ever trained on them.

Four measures of one picture, each a way in which latent diffusion fails, higher is worse:

* ``grid``: a decoder draws each latent cell alike, which leaves a faint pattern of the cell's
  period. In the luminance spectrum that is energy at single points, the multiples of 1/cell in
  both directions. Each point is compared with its neighbours along the row and along the column,
  the stronger of the two: edges and frames are lines in the spectrum, and a line is no point.
  Mean over the points, in decibels.
* ``clipped``: share of channel values at the end of their range, as an overdriven adapter makes.
* ``noise``: what trembles where the picture is flat, in grey levels: a median over pixels, so that
  edges and small things, which are few, do not count.
* ``blur``: coarse against fine energy, in decibels.

Content of just the cell's period (a fence, seen straight) would be taken for a grid; nearly all
content lies elsewhere in the spectrum. What is usual depends on the pictures, so the score is a
distance from real ones (``Reference``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pictures = NDArray[np.uint8]  # [N, height, width, 3]

CELL = 8  # pixels of a latent cell's side: Stable Diffusion's and the studio's
_NEIGHBOURS = (3, 4, 5)  # bins away: past the window's main lobe, short of the next point
_LEAST_CELLS = 12  # along an edge, for those neighbours to lie between two points
_FINE, _COARSE = (0.25, 0.5), (0.03, 0.125)  # cycles per pixel
_LEAST_CLIPPED, _LEAST_NOISE = 1e-3, 1.0  # less is nothing: one grey level is not seen
_LEAST_SPREAD = 1.0  # dB: where real pictures hardly differ, none is faulted for a trifle
_EPSILON = 1e-12


@dataclass(frozen=True)
class Artefacts:
    """Per picture, each ``[N]``: dB, a share, grey levels of 255, dB."""

    grid: Array
    clipped: Array
    noise: Array
    blur: Array


@dataclass(frozen=True)
class Reference:
    """Centre and spread of every measure over real pictures of the same size and subjects."""

    centre: dict[str, float]
    spread: dict[str, float]

    @classmethod
    def of(cls, real: Pictures, cell: int = CELL) -> Reference:
        values = _decibels_of(artefacts(real, cell))
        return cls(
            {name: float(value.mean()) for name, value in values.items()},
            {name: max(float(value.std()), _LEAST_SPREAD) for name, value in values.items()},
        )


def artefacts(images: Pictures, cell: int = CELL) -> Artefacts:
    """The four measures. ValueError where the pictures are too small for the grid."""
    if images.ndim != 4 or min(images.shape[1:3]) < _LEAST_CELLS * cell:
        raise ValueError(f"images: {images.shape}, smaller than {_LEAST_CELLS} cells of {cell}")
    height, width = (side // cell * cell for side in images.shape[1:3])
    grid, noise, blur = [], [], []
    for image in images[:, :height, :width]:
        luminance = image @ np.array((0.299, 0.587, 0.114))
        power = _spectrum(luminance)
        grid.append(_grid(power, cell))
        noise.append(_noise(luminance))
        blur.append(_level(power, *_COARSE) - _level(power, *_FINE))
    clipped = ((images == 0) | (images == 255)).mean((1, 2, 3))
    return Artefacts(np.array(grid), clipped, np.array(noise), np.array(blur))


def artefact_score(images: Pictures, reference: Reference, cell: int = CELL) -> Array:
    """``[N]``, higher is worse: how many deviations a picture lies outside the real ones.

    Root of the sum of squares over the four; better than usual is no merit. Real pictures have
    about 1.
    """
    values = _decibels_of(artefacts(images, cell))
    outside = [
        ((value - reference.centre[name]) / reference.spread[name]).clip(0)
        for name, value in values.items()
    ]
    return np.asarray(np.sqrt(np.square(outside).sum(0)))


def _decibels_of(found: Artefacts) -> dict[str, Array]:
    """On scales where real pictures spread evenly: most clip next to nothing, some a little."""
    return {
        "grid": found.grid,
        "clipped": _decibels(found.clipped + _LEAST_CLIPPED),
        "noise": 2 * _decibels(found.noise + _LEAST_NOISE),
        "blur": found.blur,
    }


def _spectrum(luminance: Array) -> Array:
    """Power under a Hann window."""
    window = np.outer(*(_hann(side) for side in luminance.shape))
    flat = luminance - (luminance * window).sum() / window.sum()
    return np.asarray(np.abs(np.fft.fft2(flat * window)) ** 2)


def _hann(length: int) -> Array:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length))


def _grid(power: Array, cell: int) -> float:
    """Mean excess in dB of the lattice's points over their neighbours."""
    height, width = power.shape
    rows, columns = np.meshgrid(
        np.arange(cell) * (height // cell), np.arange(cell) * (width // cell), indexing="ij"
    )
    rows, columns = rows.ravel()[1:], columns.ravel()[1:]  # not the picture's mean
    steps = np.array([sign * step for step in _NEIGHBOURS for sign in (-1, 1)])
    along_row = power[rows[:, None], (columns[:, None] + steps) % width].mean(1)
    along_column = power[(rows[:, None] + steps) % height, columns[:, None]].mean(1)
    usual = np.maximum(along_row, along_column)
    return float((_decibels(power[rows, columns]) - _decibels(usual)).mean())


def _noise(luminance: Array) -> float:
    """Standard deviation of white noise with this median of crossed second differences."""
    across = np.diff(np.diff(luminance, 2, axis=0), 2, axis=1)  # gain 6 on white noise
    return float(np.median(np.abs(across)) / 0.6745 / 6)


def _level(power: Array, low: float, high: float) -> float:
    """Mean decibels between two frequencies."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in power.shape), indexing="ij"))
    return float(_decibels(power[(frequency >= low) & (frequency < high)]).mean())


def _decibels(power: Array) -> Array:
    return np.asarray(10 * np.log10(power + _EPSILON))
