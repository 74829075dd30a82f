"""Artefacts put into studio pictures are felt, the more the more; styles of the world are not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.data.world import AXES, CAPTIONS, render, sample_style
from training.evaluate.artefacts import Reference, artefact_score, artefacts


def studio(count: int, seed: int, **style: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        chosen = sample_style(rng)
        for axis, value in style.items():
            chosen[AXES.index(axis)] = value
        caption = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
        out.append(render(caption, chosen, 9_600_000 + 1000 * seed + k))
    return np.stack(out)


def pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def tiled(images: np.ndarray, strength: float, period: int = 8, seed: int = 0) -> np.ndarray:
    """The same faint pattern in every cell, ``strength`` grey levels deep (deviation)."""
    cell = np.random.default_rng(seed).normal(size=(period, period))
    cell = (cell - cell.mean()) / cell.std()
    height, width = images.shape[1:3]
    pattern = np.tile(cell, (height // period + 1, width // period + 1))[:height, :width]
    return pixels(images + strength * pattern[None, :, :, None])


def seams(images: np.ndarray, strength: float) -> np.ndarray:
    """Faint lines where cells meet."""
    height, width = images.shape[1:3]
    line = (np.arange(height)[:, None] % 8 == 0) | (np.arange(width) % 8 == 0)
    return pixels(images + strength * line[None, :, :, None])


def stretched(images: np.ndarray, gain: float) -> np.ndarray:
    return pixels((images - 128.0) * (1 + gain) + 128)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(radius))) for i in images]
    )


def noisy(images: np.ndarray, strength: float) -> np.ndarray:
    return pixels(images + strength * np.random.default_rng(1).normal(size=images.shape))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(studio(80, 1))


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return studio(24, 2)


@pytest.mark.parametrize(
    ("harm", "strengths", "name"),
    [
        (tiled, (1.0, 2.0, 4.0, 8.0), "grid"),
        (seams, (4.0, 8.0, 16.0), "grid"),
        (stretched, (0.2, 0.5, 1.0, 2.0), "clipped"),
        (noisy, (1.0, 2.0, 4.0, 8.0), "noise"),
        (blurred, (0.5, 1.0, 2.0), "blur"),
    ],
)
def test_what_is_put_in_is_felt_the_more_the_more(
    harm: Callable[[np.ndarray, float], np.ndarray],
    strengths: tuple[float, ...],
    name: str,
    clean: np.ndarray,
    reference: Reference,
) -> None:
    worse = [clean, *(harm(clean, strength) for strength in strengths)]
    measured = [getattr(artefacts(images), name) for images in worse]
    assert all((b > a).mean() > 0.9 for a, b in pairwise(measured))
    scored = [float(np.median(artefact_score(images, reference))) for images in worse]
    assert scored == sorted(scored)
    assert scored[-1] > 3 * scored[0]


def test_a_real_picture_scores_about_one(clean: np.ndarray, reference: Reference) -> None:
    scored = artefact_score(clean, reference)
    assert scored.shape == (24,) and 0.7 < scored.mean() < 2.0
    assert (scored < 4).mean() > 0.9


@pytest.mark.parametrize("axis", AXES)
def test_no_style_looks_like_a_grid(axis: str) -> None:
    little, much = (artefacts(studio(24, 3, **{axis: v})).grid for v in (-1.0, 1.0))
    faint = artefacts(tiled(studio(24, 3, **{axis: 1.0}), 1.0)).grid
    assert abs(much.mean() - little.mean()) < 0.5  # decibels
    assert faint.mean() - much.mean() > 3.0


def test_one_grey_level_of_grid_is_told_from_the_strongest_hatching() -> None:
    hatched = studio(60, 4, hatching=1.0)
    without, within = artefacts(hatched).grid, artefacts(tiled(hatched, 1.0)).grid
    assert (within[:, None] > without).mean() > 0.95  # area under the curve


def test_only_the_cells_period_is_a_grid(clean: np.ndarray) -> None:
    usual = artefacts(clean).grid.mean()
    for period in (5, 7, 9, 11):
        assert artefacts(tiled(clean, 4.0, period)).grid.mean() < usual + 1.0
    assert artefacts(tiled(clean, 4.0, 8)).grid.mean() > usual + 8.0
    for period in (2, 4):  # what a later, finer layer of the decoder leaves
        assert artefacts(tiled(clean, 4.0, period)).grid.mean() > usual + 0.5
    sixteen = artefacts(tiled(clean, 4.0, 16), cell=8).grid.mean()
    assert usual + 2.0 < sixteen < artefacts(tiled(clean, 4.0, 8)).grid.mean()


def test_where_the_grid_begins_and_which_way_it_lies_is_no_matter(clean: np.ndarray) -> None:
    grid = artefacts(tiled(clean, 2.0)).grid
    moved = artefacts(tiled(np.roll(clean, (3, 5), (1, 2)), 2.0)).grid
    assert abs(grid.mean() - moved.mean()) < 1.0
    turned = artefacts(np.ascontiguousarray(tiled(clean, 2.0).transpose(0, 2, 1, 3))).grid
    np.testing.assert_allclose(turned, grid, atol=1e-6)


def test_noise_is_known_where_it_is_put(clean: np.ndarray) -> None:
    grey = np.full((4, 128, 128, 3), 128.0)
    one = np.random.default_rng(5).normal(size=(4, 128, 128, 1))
    for strength in (2.0, 6.0):
        found = artefacts(pixels(grey + strength * one)).noise
        np.testing.assert_allclose(found, strength, rtol=0.1)
    assert artefacts(clean).noise.max() < 0.5


def test_clipping_is_counted() -> None:
    images = np.full((1, 128, 128, 3), 128, np.uint8)
    images[0, :32, :, 0] = 255
    images[0, :64, :, 1] = 0
    assert artefacts(images).clipped[0] == pytest.approx((0.25 + 0.5) / 3)


def test_pictures_are_judged_alone_and_in_any_shape(
    clean: np.ndarray, reference: Reference
) -> None:
    together = artefact_score(clean[:5], reference)
    np.testing.assert_array_equal(
        together, [artefact_score(clean[k : k + 1], reference)[0] for k in range(5)]
    )
    wide = np.concatenate([clean[:5], clean[5:10]], axis=2)[:, :101, :203]
    plain, gridded = artefacts(wide).grid, artefacts(tiled(wide, 2.0)).grid
    assert (gridded > plain + 2).all()
    flat = artefacts(np.zeros((1, 128, 128, 3), np.uint8))
    assert np.isfinite([flat.grid[0], flat.noise[0], flat.blur[0]]).all()


@pytest.mark.parametrize("shape", [(2, 64, 128, 3), (128, 128, 3)])
def test_a_picture_of_few_cells_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images: "):
        artefacts(np.zeros(shape, np.uint8))
