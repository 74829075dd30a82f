"""The frozen world: captions fix the content, eight axes are free and can be read from pixels."""

from __future__ import annotations

import numpy as np
import pytest

from training.data import fingerprint as frozen
from training.data.judge import scores
from training.data.world import (
    AXES,
    CAPTIONS,
    HELD_OUT_CAPTIONS,
    SETTINGS,
    SIDE,
    SIZES,
    SUBJECTS,
    TRAIN_CAPTIONS,
    render,
    sample_style,
)


def test_the_world_is_the_one_the_figures_speak_of() -> None:
    assert frozen.fingerprint() == frozen.FROZEN


def test_comments_are_free_and_code_is_not() -> None:
    plain = 'def f(x):\n    "says"\n    return x + 1\n'
    commented = 'def f(x: int) -> int:\n    "says more"\n    # why\n    return (x + 1)\n'
    assert frozen._canonical(plain) == frozen._canonical(commented)
    assert frozen._canonical(plain) != frozen._canonical(plain.replace("+ 1", "+ 2"))


def test_captions_split_into_seen_and_held_out() -> None:
    assert len(CAPTIONS) == len(set(map(str, CAPTIONS))) == 96
    assert set(TRAIN_CAPTIONS) | set(HELD_OUT_CAPTIONS) == set(CAPTIONS)
    assert not set(TRAIN_CAPTIONS) & set(HELD_OUT_CAPTIONS)
    # Every word of a held-out caption was seen; only the combination is new.
    for field, all_of_it in (("size", SIZES), ("subject", SUBJECTS), ("setting", SETTINGS)):
        assert {getattr(c, field) for c in TRAIN_CAPTIONS} == set(all_of_it)
    assert {c.subject for c in HELD_OUT_CAPTIONS} == set(SUBJECTS)


def test_painting_is_a_pure_function() -> None:
    style = sample_style(np.random.default_rng(0))
    first, again, other = (render(CAPTIONS[7], style, seed) for seed in (1, 1, 2))
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.05
    assert (render(CAPTIONS[8], style, 1) != first).any()


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Styles and scores of pictures of all captions."""
    rng = np.random.default_rng(3)
    styles = np.stack([sample_style(rng) for _ in range(384)])
    captions = [CAPTIONS[i % 96] for i in range(384)]
    images = np.stack(
        [render(c, s, 8_500_000 + i) for i, (c, s) in enumerate(zip(captions, styles, strict=True))]
    )
    return styles, scores(images, captions)


@pytest.mark.parametrize("axis", range(len(AXES)), ids=AXES)
def test_an_axis_is_read_back_from_pixels(sample: tuple, axis: int) -> None:
    """The score follows its own parameter, and no other one half as much."""
    styles, found = sample
    follows = [np.corrcoef(styles[:, k], found[:, axis])[0, 1] for k in range(len(AXES))]
    assert follows[axis] > 0.8
    assert np.abs(np.delete(follows, axis)).max() < 0.5 * follows[axis]


@pytest.mark.parametrize("axis", range(len(AXES)), ids=AXES)
def test_a_score_rises_with_its_parameter(axis: int) -> None:
    levels = np.linspace(-1, 1, 5)
    captions = [CAPTIONS[i] for i in (0, 20, 41, 67, 88, 95)]
    means = []
    for level in levels:
        rng, images = np.random.default_rng(4), []
        for i, caption in enumerate(captions):
            style = 0.5 * sample_style(rng)
            style[axis] = level
            images.append(render(caption, style, 8_600_000 + i))
        means.append(scores(np.stack(images), captions)[:, axis].mean())
    assert (np.diff(means) > 0).all()
    assert means[-1] - means[0] > 1


def test_scores_are_centred_and_scaled(sample: tuple) -> None:
    found = sample[1]
    np.testing.assert_allclose(found.mean(0), 0, atol=0.25)
    np.testing.assert_allclose(found.std(0), 1, atol=0.25)
