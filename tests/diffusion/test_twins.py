"""Stable Diffusion 1.5 and SDXL in miniature against the unmodified pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from ppd_serve.diffusion.backbone import Backbone, load_backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import InvalidInput, ReleaseError
from ppd_serve.release import Release, write_release
from tests.diffusion.test_isolation import embedding
from tests.tiny_release import EMBEDDING_ROWS
from tests.twins.releases import TWINS

SCHEDULERS: dict[str, Callable[..., Any]] = {
    "ddim": DDIMScheduler.from_config,
    "euler": EulerDiscreteScheduler.from_config,
    "dpmpp_2m": DPMSolverMultistepScheduler.from_config,
    "dpmpp_2m_karras": partial(DPMSolverMultistepScheduler.from_config, use_karras_sigmas=True),
    "euler_ancestral": EulerAncestralDiscreteScheduler.from_config,
    "euler_karras": partial(EulerDiscreteScheduler.from_config, use_karras_sigmas=True),
    "ddpm": DDPMScheduler.from_config,
    "lcm": LCMScheduler.from_config,
}
FAMILIES = ("sd15", "sdxl")
MISFIT = r"ip_adapter\.safetensors is of another backbone"
A, B = embedding(1), embedding(2)


class Twin(NamedTuple):
    release: Release
    backbone: Backbone
    adapter: UserAdapter

    def draw(self, *requests: GenerationRequest) -> list[Any]:
        engine = Engine(self.backbone, self.adapter, embedding_rows=EMBEDDING_ROWS)
        tickets = engine.submit_all(requests)
        with engine:
            return [ticket.result(120) for ticket in tickets]

    def request(self, **chosen: Any) -> GenerationRequest:
        return self.release.defaults.request(**{"prompt": "a red house", "seed": 11} | chosen)


@pytest.fixture(scope="module", params=FAMILIES)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    release = TWINS[request.param](tmp_path_factory.mktemp(request.param), make_encoder=None)
    backbone = release.load_backbone()
    adapter = release.load_adapter(backbone)
    assert adapter is not None
    return Twin(release, backbone, adapter)


def stock_of(release: Release, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Loaded by diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(release.backbone_path, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_adapter(pipeline: DiffusionPipeline, release: Release) -> DiffusionPipeline:
    assert release.adapter_path is not None
    pipeline.load_ip_adapter(
        release.adapter_path.parent.parent,
        subfolder=release.adapter_path.parent.name,
        weight_name=release.adapter_path.name,
        image_encoder_folder=None,
    )
    return pipeline


@pytest.fixture(scope="module")
def stock(twin: Twin) -> DiffusionPipeline:
    return stock_of(twin.release)


@pytest.fixture(scope="module")
def stock_with_adapter(twin: Twin) -> DiffusionPipeline:
    return with_adapter(stock_of(twin.release), twin.release)


def theirs(
    pipeline: DiffusionPipeline, request: GenerationRequest, output: str = "latent", **more: Any
) -> np.ndarray:
    """What stock diffusers makes of a request; ``pipeline.scheduler`` stays as it is."""
    images = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt or None,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type=output,
        **more,
    ).images
    return images[0].float().numpy() if isinstance(images, Tensor) else images[0]


REQUESTS: list[dict[str, Any]] = [
    *({"sampler": sampler} for sampler in SCHEDULERS),
    {"negative_prompt": "blue"},
    {"guidance_scale": 1.0},
    {"width": 128, "height": 64, "guidance_rescale": 0.4},
    {"width": 64, "height": 128, "steps": 7, "prompt": "", "seed": 3},
]


@pytest.mark.parametrize("chosen", REQUESTS, ids=str)
def test_plain_pictures_are_those_of_stock_diffusers(
    twin: Twin, stock: DiffusionPipeline, chosen: dict[str, Any]
) -> None:
    request = twin.request(**{"steps": 5} | chosen)
    (ours,) = twin.draw(request)
    stock.scheduler = SCHEDULERS[request.sampler](twin.backbone.scheduler_config)
    expected = theirs(stock, request)
    assert np.abs(expected).max() > 0.1
    assert np.abs(ours.latents - expected).max() < 1e-3
    pixels = (theirs(stock, request, "np") * 255).round().astype(int)
    assert pixels.std() > 1
    assert np.abs(pixels - ours.pixels.astype(int)).max() <= 1


def test_sdxl_needs_no_other_scheduler(tmp_path: Path) -> None:
    """The pipeline exactly as it was loaded: Euler, leading, offset by one."""
    release = TWINS["sdxl"](tmp_path, make_encoder=None)
    backbone = release.load_backbone()
    request = release.defaults.request("a red house", seed=4)
    assert request.sampler == "euler"
    with Engine(backbone) as engine:
        ours = engine.submit(request).result(60).latents
    stock = stock_of(release)
    assert isinstance(stock.scheduler, EulerDiscreteScheduler)
    assert np.abs(ours - theirs(stock, request)).max() < 1e-3


@pytest.mark.parametrize(("guidance", "scale"), [(5.0, 1.0), (1.0, 1.0), (2.5, 0.4)])
def test_unmodified_diffusers_loads_the_adapter(
    twin: Twin, stock_with_adapter: DiffusionPipeline, guidance: float, scale: float
) -> None:
    request = twin.request(
        sampler="ddim",
        negative_prompt="blue",
        users=(User(A),),
        guidance_scale=guidance,
        preference_scale=scale,
    )
    ours, nobodys = twin.draw(request, twin.request(sampler="ddim", negative_prompt="blue"))
    pipeline = stock_with_adapter
    pipeline.scheduler = SCHEDULERS["ddim"](twin.backbone.scheduler_config)
    pipeline.set_ip_adapter_scale(scale)
    user = torch.from_numpy(A)[None]
    embeds = torch.cat([torch.zeros_like(user), user]) if guidance > 1 else user
    expected = theirs(pipeline, request, ip_adapter_image_embeds=[embeds])
    assert np.abs(ours.latents - expected).max() < 1e-3
    assert np.abs(ours.latents - nobodys.latents).max() > 0.05, "the user shows"


def test_only_the_swapped_row_changes(twin: Twin) -> None:
    """A batch of users, of nobody and of a blend: another user in one row moves no other row."""
    blend = (User(A, 0.5), User(B, 0.5))

    def batch(second: np.ndarray) -> list[np.ndarray]:
        users: list[tuple[User, ...]] = [(User(A),), (User(second),), (), blend]
        made = twin.draw(*(twin.request(users=u, seed=i) for i, u in enumerate(users)))
        return [result.latents for result in made]

    before, after = batch(B), batch(embedding(9))
    assert np.abs(before[1] - after[1]).max() > 0.05
    for row in (0, 2, 3):
        assert np.array_equal(before[row], after[row])


def test_blends(twin: Twin) -> None:
    chosen: list[tuple[User, ...]] = [
        (User(A),),
        (User(A, 0.5), User(A, 0.5)),
        (User(A, 0.5), User(B, 0.5)),
        (User(A, 1.0), User(B, 0.0)),
        (User(np.zeros_like(A)),),
        (),
    ]
    a, halves, blend, alone, zero, nobody = (
        result.latents for result in twin.draw(*(twin.request(users=users) for users in chosen))
    )
    assert np.abs(halves - a).max() < 1e-4 and np.abs(alone - a).max() < 1e-4
    assert np.array_equal(zero, nobody)
    assert np.abs(blend - a).max() > 0.05 and np.abs(blend - nobody).max() > 0.05


def test_half_precision_is_as_near_as_stock_diffusers(twin: Twin, stock: DiffusionPipeline) -> None:
    """The same noise, in bfloat16: our error against float32 is at most 1.5 times theirs."""
    request = twin.request(sampler="ddim", users=())
    shape = twin.backbone.latent_shape(request.width, request.height)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(request.seed))
    stock.scheduler = SCHEDULERS["ddim"](twin.backbone.scheduler_config)
    exact = theirs(stock, request, latents=noise)
    half = stock_of(twin.release, torch.bfloat16)
    half.scheduler = stock.scheduler
    with Engine(twin.release.load_backbone(dtype=torch.bfloat16)) as engine:
        ours = engine.submit(request).result(120).latents
    error = np.sqrt(np.mean((ours - exact) ** 2))
    limit = np.sqrt(np.mean((theirs(half, request, latents=noise.bfloat16()) - exact) ** 2))
    assert 0 < error <= 1.5 * limit


def test_sizes(twin: Twin) -> None:
    assert twin.backbone.latent_shape(128, 64) == (4, 8, 16)
    for width, height, field in [
        (72, 64, "width"),
        (64, 48, "height"),
        (256, 64, "width"),
        (64, 0, "height"),
    ]:
        with pytest.raises(InvalidInput, match="at most 128") as refused:
            twin.backbone.latent_shape(width, height)
        assert refused.value.field == field


def test_compile_is_for_gpus(twin: Twin) -> None:
    assert load_backbone(twin.release.backbone_path, compile=True).bucket(5) == 5


def test_kernels_are_chosen_alike(twin: Twin) -> None:
    request = twin.request(users=(User(A),))
    backbone = twin.release.load_backbone(attention_backend="native")
    chosen = Twin(twin.release, backbone, twin.release.load_adapter(backbone))  # type: ignore[arg-type]
    assert np.abs(chosen.draw(request)[0].latents - twin.draw(request)[0].latents).max() < 1e-4


@pytest.mark.parametrize("place", ["unet/diffusion_pytorch_model.bin", "text_encoder/old.ckpt"])
def test_pickles_are_refused(twin: Twin, tmp_path: Path, place: str) -> None:
    for file in twin.release.backbone_path.rglob("*.json"):
        copy = tmp_path / file.relative_to(twin.release.backbone_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / place).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ReleaseError, match=f"{place} is a pickle"):
        load_backbone(tmp_path)


def test_the_other_familys_adapter_is_refused_by_name(tmp_path: Path) -> None:
    sd15, sdxl = (TWINS[name](tmp_path / name, make_encoder=None) for name in FAMILIES)
    for own, other in ((sd15, sdxl), (sdxl, sd15)):
        assert own.adapter_path is not None and other.adapter_path is not None
        kept = own.adapter_path.read_bytes()
        own.adapter_path.write_bytes(other.adapter_path.read_bytes())
        mixed = write_release(own.path, own.manifest)
        with pytest.raises(ReleaseError, match=MISFIT):
            mixed.check()
        with pytest.raises(ReleaseError, match=MISFIT):
            mixed.load_adapter(mixed.load_backbone())
        own.adapter_path.write_bytes(kept)
