from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler

from ppd_serve.diffusion.backbone import Backbone, load_backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import Defaults, User
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import InvalidInput, ReleaseError
from ppd_serve.release import Release
from tests.diffusion.test_isolation import embedding
from tests.tiny_release import EMBEDDING_ROWS, tiny_pipeline


def test_any_text_from_many_threads(backbone: Backbone) -> None:
    prompts = [f"prompt {i} 夜の海 🎨 \x01" * (i % 5) for i in range(40)]
    expected = [backbone.encode.__wrapped__(p)["states"] for p in prompts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: backbone.encode.__wrapped__(p)["states"], prompts))
    assert {tuple(states.shape) for states in found} == {(1, 16, 24)}
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_prompt_is_encoded_once(release: Release) -> None:
    """The empty negative prompt of everybody, above all."""
    backbone = release.load_backbone()
    defaults = release.defaults
    with Engine(backbone) as engine:
        for prompt in ("a house", "a cat", "a house"):
            engine.submit(defaults.request(prompt, steps=1)).result(60)
        stats = engine.stats()
    assert defaults.guidance_scale > 1, "or there would be no negative prompt"
    assert (stats.text_hits, stats.text_misses) == backbone.texts_found() == (3, 3)
    assert backbone.encode("a house") is backbone.encode("a house")


@pytest.mark.parametrize(
    ("width", "height", "field"),
    [(60, 64, "width"), (64, 0, "height"), (64, -32, "height"), (1024, 64, "width")],
)
def test_refuses_sizes_it_cannot_do(
    backbone: Backbone, width: int, height: int, field: str
) -> None:
    assert backbone.latent_shape(32, 64) == (4, 4, 2)
    with pytest.raises(InvalidInput) as refused:
        backbone.latent_shape(width, height)
    assert refused.value.field == field


def test_refuses_schedules_it_cannot_do(backbone: Backbone) -> None:
    for sampler, steps, field in (("magic", 5, "sampler"), ("ddim", 0, "steps")):
        with pytest.raises(InvalidInput) as refused:
            backbone.schedule(sampler, steps)
        assert refused.value.field == field


def test_a_kl_autoencoder_and_an_epsilon_model_load_alike(tmp_path: Path) -> None:
    """Stable Diffusion 1.5's classes: nothing else of the code knows."""
    torch.manual_seed(0)
    pipeline = tiny_pipeline()
    kl = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
    )
    pipeline.register_modules(
        vae=kl, scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    )
    pipeline.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    defaults = Defaults(sizes=((32, 32),), steps=3, guidance_scale=7.5, sampler="euler")
    with Engine(backbone) as engine:
        result = engine.submit(defaults.request("a house")).result(30)
    assert result.pixels.shape == (32, 32, 3) and result.latents.shape == (4, 4, 4)


def test_refuses_a_model_no_table_can_sample(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.register_modules(
        scheduler=DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False)
    )
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ReleaseError, match="zero terminal SNR"):
        load_backbone(tmp_path)


def test_bfloat16_costs_no_more_beside_neighbours(
    release: Release, backbone: Backbone, adapter: UserAdapter
) -> None:
    """A row among others is as near to float32 as a lone row in bfloat16 is (× 1.5)."""
    requests = [
        release.defaults.request("a house", seed=i, users=[User(embedding(i))] if i else [])
        for i in range(6)
    ]

    def draw(engine: Engine, together: bool) -> list[np.ndarray]:
        groups = [requests] if together else [[request] for request in requests]
        with engine:
            made = [[t.result(60) for t in engine.submit_all(group)] for group in groups]
        return [result.latents for group in made for result in group]

    def engine(dtype: torch.dtype) -> Engine:
        half = release.load_backbone(dtype=dtype)
        return Engine(half, release.load_adapter(half), embedding_rows=EMBEDDING_ROWS)

    exact = draw(engine(torch.float32), together=True)
    alone = draw(engine(torch.bfloat16), together=False)
    beside = draw(engine(torch.bfloat16), together=True)

    def error(found: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean([(a - b) ** 2 for a, b in zip(found, exact, strict=True)])))

    assert 0 < error(alone) < 0.5, "bfloat16 is in use, and still makes the picture"
    assert error(beside) <= 1.5 * error(alone)
