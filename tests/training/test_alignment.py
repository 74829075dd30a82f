"""Fréchet's distance against closed forms, and that it orders studio pictures by their style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.training.tiny_clip import make_tiny_clip, pictures
from training.__main__ import app
from training.data.world import AXES, TRAIN_CAPTIONS, render, sample_style
from training.evaluate.alignment import aligned, frechet, frechet_of_normals, style_alignment
from training.evaluate.scorers import load_scorer
from training.evaluate.scorers.clip import ClipScorer


def covariance(dim: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(dim, dim))
    return root @ root.T


def test_of_normals_that_share_their_axes() -> None:
    # Commuting covariances: |μ₁ - μ₂|² + Σ (σ₁ - σ₂)².
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.1, 3, (2, 6))
    mean_a, mean_b = rng.normal(size=(2, 6))
    found = frechet_of_normals(mean_a, (turn * a**2) @ turn.T, mean_b, (turn * b**2) @ turn.T)
    assert found == pytest.approx(((mean_a - mean_b) ** 2).sum() + ((a - b) ** 2).sum())


def test_in_two_dimensions_the_trace_of_the_root_is_known() -> None:
    # tr √M = √(tr M + 2·√det M) for a 2×2 matrix with M = Σ₁Σ₂.
    a, b = covariance(2, 1), covariance(2, 2)
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)
    found = frechet_of_normals(zero, a, zero, b)
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_it_is_symmetric_and_nothing_on_itself(dim: int) -> None:
    rng = np.random.default_rng(dim)
    a, b = rng.normal(size=(25, dim)), 2 * rng.normal(size=(30, dim)) + 1  # 40: flat covariances
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6)
    assert frechet(a, b) > 0.5
    assert frechet(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet(a, a + 3) == pytest.approx(9 * dim, rel=1e-6)


def test_turning_and_shifting_both_sets_changes_nothing_and_scale_counts_squared() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) * [1, 2, 3, 4]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert frechet(a @ turn + 7, b @ turn + 7) == pytest.approx(frechet(a, b))
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b))


def test_few_pictures_look_further_away_than_they_are() -> None:
    rng = np.random.default_rng(6)

    def same(count: int) -> float:
        return float(np.mean([frechet(*rng.normal(size=(2, count, 8))) for _ in range(30)]))

    few, more, many = same(20), same(40), same(320)
    assert few > 1.6 * more > 2.5 * many > 0  # the truth is 0


def test_the_interval_is_where_other_sets_of_as_many_pictures_lie() -> None:
    rng = np.random.default_rng(7)

    def sets(count: int) -> tuple[np.ndarray, np.ndarray]:
        return 1.5 * rng.normal(size=(count, 4)) + 0.5, rng.normal(size=(2 * count, 4))

    again = np.mean([aligned(*sets(100)).distance for _ in range(40)])
    found = [aligned(*sets(100)) for _ in range(40)]
    held = [row.low <= again <= row.high for row in found]
    assert np.mean(held) >= 0.85 and not all(row.low <= again + 0.6 <= row.high for row in found)
    few, many = (np.mean([a.high - a.low for a in rows])
                 for rows in ([aligned(*sets(25)) for _ in range(10)], found))  # fmt: skip
    assert few > 1.5 * many > 0


def studio(count: int, seed: int, **style: float) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        chosen = sample_style(rng)
        for axis, value in style.items():
            chosen[AXES.index(axis)] = value
        caption = TRAIN_CAPTIONS[int(rng.integers(len(TRAIN_CAPTIONS)))]
        out.append(Image.fromarray(render(caption, chosen, 9_500_000 + 1000 * seed + k)))
    return out


def coarse(images: list[Image.Image]) -> np.ndarray:
    """Colours of a 3x3 grid: features enough for warmth and brightness."""
    return np.stack([np.asarray(i.resize((3, 3)), float).ravel() / 255 for i in images])


def test_pictures_of_the_style_are_nearer_than_others() -> None:
    target = studio(120, 1, warmth=1.0, brightness=0.8)
    there, half, away = (
        style_alignment(coarse, studio(60, seed, warmth=w, brightness=b), target)
        for seed, w, b in ((2, 1.0, 0.8), (3, 0.3, 0.2), (4, -1.0, -0.8))
    )
    assert there.distance < half.distance < away.distance
    assert there.floor == half.floor == away.floor and there.count == 60
    assert there.distance == pytest.approx(there.floor, rel=0.5)
    assert away.distance > 10 * away.floor


def test_by_command_any_pictures_against_any_style(tmp_path: Path) -> None:
    clip = make_tiny_clip(tmp_path / "clip")
    of = {"ink": pictures(12, seed=1), "near": pictures(6, seed=2)}
    of["far"] = [image.point(lambda v: v // 4) for image in pictures(6, seed=3)]
    for name, images in of.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            image.save(tmp_path / name / f"{number}.png")

    def said(*patterns: str, code: int = 0) -> str:
        asked = [part for p in patterns for part in ("--pictures", str(tmp_path / p))]
        command = ["judge-style", "--style", str(tmp_path / "ink/*"), "--clip", str(clip), *asked]
        found = CliRunner().invoke(app, command)
        assert found.exit_code == code, found.output
        return found.output

    lines = said("near/*", "far/*").splitlines()
    near, far = (line for line in lines if " to itself " in line)
    assert str(tmp_path / "near/*: ") in near and near.endswith("6 pictures of each")
    distance = [float(line.split("/*: ")[1].split(" ")[0]) for line in (near, far)]
    assert 0 < distance[0] < distance[1]
    assert "nothing/*: 0 pictures, 2 are needed" in " ".join(
        said("nothing/*", code=2).replace("│", " ").split()
    )


def test_with_clips_image_tower(tmp_path: Path) -> None:
    scorer = load_scorer("clip", make_tiny_clip(tmp_path))
    assert isinstance(scorer, ClipScorer)
    style, same = pictures(24, seed=1), pictures(12, seed=2)
    dark = [image.point(lambda v: v // 4) for image in pictures(12, seed=3)]
    near, far = (style_alignment(scorer.features, p, style) for p in (same, dark))
    assert 0 < near.distance < far.distance
    assert near == style_alignment(scorer.features, same, style)
    assert near.count == 12


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="style: 3 of 4"):
        style_alignment(coarse, pictures(5), pictures(3))
    with pytest.raises(ValueError, match="pictures: 1 of 2"):
        style_alignment(coarse, pictures(1), pictures(5))
