"""The autoencoder's shapes, its loss, and that both of its stages learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.studio import small_pool
from training import autoencoder
from training.stage import Stage, draws


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return small_pool(12).images


def tiny() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return autoencoder.new_autoencoder(channels=8, latent_channels=4)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_psnr_is_the_formula(share: float) -> None:
    target = torch.zeros(2, 3, 4, 4)
    decoded = target + 2 * 0.1 ** (1 + share)
    assert autoencoder.psnr(decoded, target) == pytest.approx(20 * (1 + share), abs=1e-3)


def test_pixels_become_minus_one_to_one() -> None:
    image = np.array([[[[0, 127, 255]]]], np.uint8)
    found = autoencoder.to_input(image)
    assert found.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(found.flatten(), [-1, -0.0039, 1], atol=1e-3)


def test_eight_times_smaller_and_back(images: np.ndarray) -> None:
    vae = tiny()
    latents = vae.encode(autoencoder.to_input(images[:2])).latents
    assert latents.shape == (2, 4, 16, 16)
    assert vae.decode(latents).sample.shape == (2, 3, 128, 128)
    assert 0.05 < latents.std() < 20  # neither died nor exploded at the start


def test_the_half_size_head_ends_at_half_size(images: np.ndarray) -> None:
    vae = tiny()
    head = torch.nn.Conv2d(8, 3, 3, padding=1)
    latents = vae.encode(autoencoder.to_input(images[:1])).latents
    assert autoencoder._decode_half(vae, head, latents).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 5), (3, 8), (8, 8), (4, 1)])
def test_a_windows_inner_part_is_what_the_whole_would_be(
    images: np.ndarray, y: int, x: int
) -> None:
    """Training on half-size windows must not teach the decoder what a cut edge looks like."""
    vae = tiny()
    latents = vae.encode(autoencoder.to_input(images[:1])).latents
    cells, px = 8, 8
    with torch.no_grad():
        whole = vae.decode(latents).sample[..., px * y : px * y + 64, px * x : px * x + 64]
        window = vae.decode(latents[..., y : y + cells, x : x + cells]).sample
    rows, columns = (autoencoder._unspoiled(v, cells, px) for v in (y, x))
    error = (window - whole).abs()
    inner = error[..., rows, columns]
    # A random decoder looks farther than a trained one does, well past one cell. What is left must
    # be less than a cut edge costs, and far less than a window in the wrong place (1.4 spreads).
    assert inner.mean() < 0.5 * whole.std()
    assert inner.mean() < error.mean()


def test_both_stages_learn(tmp_path: Path, images: np.ndarray) -> None:
    vae = tiny()
    core = autoencoder.core_stage(vae, images, images[:4], tmp_path, steps=25, batch=4)
    core.warmup = 2
    first = loss_of(core)
    assert core.run()
    assert loss_of(core) < 0.8 * first

    encoder = {k: v.clone() for k, v in vae.encoder.state_dict().items()}
    decoder = autoencoder.decoder_stage(vae, images, images[:4], tmp_path, steps=15, batch=4)
    decoder.warmup = 2
    first = loss_of(decoder)
    assert decoder.run()
    assert loss_of(decoder) < 0.9 * first
    assert all(torch.equal(v, vae.encoder.state_dict()[k]) for k, v in encoder.items())


def loss_of(stage: Stage) -> float:
    return sum(float(part.detach()) for part, _ in stage.loss(0, draws(7, 0)))
