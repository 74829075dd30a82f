"""The shipped default, as it is on disk: whole, small, ours, and what stock diffusers draws too."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.errors import InvalidInput
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, load_release
from ppd_serve.settings import STUDIO
from training.data.fingerprint import FROZEN
from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS, TRAIN_CAPTIONS, render, sample_style

PROMPT = str(HELD_OUT_CAPTIONS[0])


@pytest.fixture(scope="module")
def release() -> Release:
    return load_release(STUDIO)


@pytest.fixture(scope="module")
def engine(release: Release):
    backbone = release.load_backbone()
    rows = release.manifest.embedding_shape[0]
    with Engine(backbone, release.load_adapter(backbone), embedding_rows=rows) as engine:
        yield engine


def taste(release: Release, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=release.manifest.embedding_shape).astype("f4")


def pair(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    caption = TRAIN_CAPTIONS[seed % len(TRAIN_CAPTIONS)]

    def png(k: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(render(caption, sample_style(rng), 2 * seed + k)).save(buffer, "PNG")
        return buffer.getvalue()

    return Pair(str(caption), png(0), png(1))


def test_is_whole_and_small(release: Release) -> None:
    release.check()
    size = sum(f.stat().st_size for f in release.path.rglob("*") if f.is_file())
    assert size <= 40_000_000
    weights = [f for f in release.path.rglob("*") if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert not weights


def test_was_trained_in_the_frozen_world(release: Release) -> None:
    assert release.manifest.training["world"] == FROZEN


def test_reads_pairs_in_its_own_space(release: Release) -> None:
    encoder = release.load_encoder()
    assert encoder.space == release.embedding_space
    reading = encoder.embed([pair(k) for k in range(4)])
    assert reading.embedding.shape == release.manifest.embedding_shape
    assert np.isfinite(reading.embedding).all()
    assert reading.profile and reading.profile.startswith("likes ")
    other = encoder.embed([Pair(p.prompt, p.rejected, p.preferred) for p in map(pair, range(4))])
    a, b = reading.embedding.ravel(), other.embedding.ravel()
    # The same pictures with every choice turned round are somebody of another taste.
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 0


@pytest.mark.parametrize(
    "prompt", ["x", "a dog on a beach", "A beautiful painting, 4k, " * 20, "猫" * 99]
)
def test_a_taste_is_read_whatever_was_drawn(release: Release, prompt: str) -> None:
    """People choose among pictures of their own prompts, not of the world's captions alone."""
    encoder = release.load_encoder()
    own, asked = [pair(k) for k in range(4)], [replace(pair(k), prompt=prompt) for k in range(4)]
    read, same = (encoder.embed(pairs).embedding for pairs in (own, asked))
    np.testing.assert_allclose(same, read, atol=1e-5)


def request(release: Release, **chosen) -> GenerationRequest:
    return release.defaults.request(PROMPT, **{"steps": 8, "seed": 5} | chosen)


def test_rows_of_different_users_do_not_see_each_other(release: Release, engine: Engine) -> None:
    ann, bob = taste(release, 1), taste(release, 2)
    wanted = [
        request(release, users=(User(ann),)),
        request(release, users=(User(bob),)),
        request(release, users=(User(ann, 0.5), User(bob, 0.5)), sampler="euler"),
        request(release),
        request(release, users=(User(bob, -1.0),), preference_scale=0.5, steps=6),
        request(release, users=(User(ann),), guidance_scale=1.0, sampler="dpmpp_2m"),
    ]
    together = [ticket.result(120).latents for ticket in engine.submit_all(wanted)]
    alone = [engine.submit(one).result(120).latents for one in wanted]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    assert np.abs(alone[0] - alone[3]).max() > 0.1
    for mixed, lonely in zip(together, alone, strict=True):
        assert np.abs(mixed - lonely).max() < 1e-4


def test_nobody_is_the_base_bit_for_bit(release: Release, engine: Engine) -> None:
    plain = engine.submit(request(release)).result(120)
    zero = engine.submit(request(release, users=(User(0 * taste(release, 1)),))).result(120)
    off = engine.submit(
        request(release, users=(User(taste(release, 1)),), preference_scale=0.0)
    ).result(120)
    assert (plain.latents == zero.latents).all()
    assert (plain.latents == off.latents).all()


def test_stock_diffusers_draws_the_same(release: Release, engine: Engine) -> None:
    user = taste(release, 3)
    ours = engine.submit(
        request(release, users=(User(user),), guidance_rescale=0.0, preference_scale=1.0)
    ).result(120)
    stock = StableDiffusionPipeline.from_pretrained(release.backbone_path)
    stock.load_ip_adapter(
        release.path, subfolder="adapter", weight_name="ip_adapter.safetensors",
        image_encoder_folder=None,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    shape = engine.backbone.latent_shape(*release.defaults.sizes[0])
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(5))
    embeds = torch.from_numpy(np.stack([0 * user, user]))
    theirs = stock(
        PROMPT, num_inference_steps=8, guidance_scale=release.defaults.guidance_scale,
        latents=noise, ip_adapter_image_embeds=[embeds], output_type="latent",
        width=release.defaults.sizes[0][0], height=release.defaults.sizes[0][1],
    ).images[0]  # fmt: skip
    assert np.abs(theirs.float().numpy() - ours.latents).max() < 1e-3


def test_any_text_is_a_prompt(release: Release, engine: Engine) -> None:
    for prompt in ("", "Ünïcode 🐉", "x" * 4000, *(str(c) for c in CAPTIONS[:2])):
        result = engine.submit(release.defaults.request(prompt, steps=2)).result(120)
        assert result.pixels.shape == (128, 128, 3)


@pytest.mark.parametrize(("sampler", "spacing"), [("ddim", "leading"), ("dpmpp_2m", "linspace")])
def test_more_steps_than_a_sampler_has_are_refused(sampler: str, spacing: str) -> None:
    """Near as many as in training some timesteps repeat, or lie beyond the last."""
    backbone = load_release(STUDIO).load_backbone()
    spaced = {"timestep_spacing": spacing, "steps_offset": 1}
    backbone.scheduler_config = {**backbone.scheduler_config, **spaced}
    backbone.schedule(sampler, 500)
    with pytest.raises(InvalidInput, match=f"steps: are too many for {sampler}"):
        backbone.schedule(sampler, 1000)
