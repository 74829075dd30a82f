"""Stable Cascade in miniature: the stock pipelines' pictures, to everybody's own taste."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
)
from safetensors.torch import save_file
from torch import Tensor

from ppd_serve.actors import Diffuser
from ppd_serve.diffusion.backbone import Backbone, load_backbone
from ppd_serve.diffusion.cascade_halves import join
from ppd_serve.diffusion.effnet import FILE, EfficientNetEncoder
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.schedules import advance
from ppd_serve.diffusion.stable_cascade import StableCascade
from ppd_serve.diffusion.ticket import Progress, Ticket
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.diffusion.wuerstchen import CLASS, wuerstchen
from ppd_serve.errors import Cancelled, InvalidInput, ReleaseError
from ppd_serve.gateway.ports import DrawRequest
from ppd_serve.release import Release
from ppd_serve.settings import DiffuserPart
from tests.diffusion.test_isolation import embedding
from tests.tiny_encoder import DIM, ROWS
from tests.tiny_release import make_tiny_release
from tests.twins.stable_cascade import make_stable_cascade, stable_cascade_pipeline

WAIT = 120
STEPS_B = 10
A, B, C = embedding(1), embedding(2), embedding(3)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_stable_cascade(tmp_path_factory.mktemp("cascade"), make_encoder=None)


@pytest.fixture(scope="module")
def backbone(release: Release) -> StableCascade:
    backbone = release.load_backbone()
    assert isinstance(backbone, StableCascade)
    return backbone


@pytest.fixture(scope="module")
def adapter(release: Release, backbone: StableCascade) -> UserAdapter:
    adapter = release.load_adapter(backbone)
    assert adapter is not None
    return adapter


@pytest.fixture(scope="module")
def stock() -> StableCascadeCombinedPipeline:
    pipeline = stable_cascade_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def engine_of(backbone: Backbone, adapter: UserAdapter | None = None) -> Engine:
    return Engine(backbone, adapter, embedding_rows=ROWS)


def draw(engine: Engine, *requests: GenerationRequest) -> list[Any]:
    tickets = engine.submit_all(requests)
    with engine:
        return [ticket.result(WAIT) for ticket in tickets]


def alike(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Untrained stages end far out: relative to the spread of what they make."""
    return bool(np.abs(one - other).max() < tolerance * one.std())


# --- the sampler ----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"scaler": 2.0}, {"scaler": 0.5, "s": 0.02}])
@pytest.mark.parametrize("steps", [1, 2, 10, 29])
def test_the_table_is_diffusers_scheduler(config: dict[str, float], steps: int) -> None:
    def model(x: Tensor, t: float) -> Tensor:
        return 0.9 * x + 0.1 * torch.tanh(3 * x + t)

    scheduler = DDPMWuerstchenScheduler(**config)
    scheduler.set_timesteps(steps)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    theirs = start
    for t in scheduler.timesteps[:-1]:
        theirs = scheduler.step(model(theirs, t), t.expand(2), theirs, generator).prev_sample

    generator.manual_seed(1)
    table = wuerstchen({"_class_name": CLASS, **scheduler.config}, steps)
    ours = start * table.start
    for step in table.steps:
        noise = torch.randn(start.shape, generator=generator)
        m = model(ours, step.timestep)
        ours, _ = advance([step] * 2, ours, m, torch.zeros_like(ours), noise)
    assert torch.allclose(ours * table.end, theirs, atol=1e-4, rtol=1e-4)
    assert theirs.std() > 0.1 and table.steps[-1].d == 0


# --- the stock pipelines --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "guidance_b"), [(4.0, 0.0), (1.0, 0.0), (4.0, 1.4), (1.0, 1.4)]
)
@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 128)])
def test_the_picture_is_the_stock_pipelines(
    release: Release,
    backbone: StableCascade,
    stock: StableCascadeCombinedPipeline,
    monkeypatch: pytest.MonkeyPatch,
    guidance: float,
    guidance_b: float,
    width: int,
    height: int,
) -> None:
    monkeypatch.setattr(backbone.later[0], "guidance_scale", guidance_b)
    request = release.defaults.request(
        "a red house", negative_prompt="blue", width=width, height=height, steps=5,
        guidance_scale=guidance, seed=11,
    )  # fmt: skip
    [ours] = draw(engine_of(backbone), request)

    text = {"prompt": "a red house", "negative_prompt": "blue"}

    def theirs(output_type: str) -> Any:
        generator = torch.Generator().manual_seed(11)  # of both stages
        found = stock.prior_pipe(
            **text, width=width, height=height, num_inference_steps=5, guidance_scale=guidance,
            generator=generator,
        ).image_embeddings  # fmt: skip
        return stock.decoder_pipe(
            found, **text, num_inference_steps=STEPS_B, guidance_scale=guidance_b,
            generator=generator, output_type=output_type,
        ).images  # fmt: skip

    assert alike(theirs("latent")[0].numpy(), ours.latents, 1e-3)
    pixels = (theirs("np")[0] * 255).round().astype(int)
    assert pixels.shape == ours.pixels.shape == (height, width, 3) and pixels.std() > 10
    assert np.abs(pixels - ours.pixels.astype(int)).max() <= 1


def test_stage_c_with_a_branch_for_nobody_is_stock_bit_for_bit(release: Release) -> None:
    backbone = release.load_backbone()
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(2, 16, 3, 6, generator=generator), torch.tensor([1.0, 0.3])
    text = {k: v.repeat(2, 1, 1) for k, v in backbone.encode("a red house").items()}
    with torch.inference_mode():  # the loaded UNet as it is, with diffusers' own processors
        theirs = backbone.denoiser(
            x, t, clip_text_pooled=text["pooled"], clip_text=text["states"],
            clip_img=torch.zeros(2, 1, 12),
        ).sample  # fmt: skip
    adapter = release.load_adapter(backbone)
    assert adapter is not None

    def drawn(embedding: np.ndarray) -> Tensor:
        users = adapter.project(torch.from_numpy(embedding)[None].repeat(2, 1, 1))
        with torch.inference_mode(), adapter.condition(users[:, None]):
            return backbone.denoise(x, t, text)

    assert torch.equal(drawn(np.zeros_like(A)), theirs)
    assert (drawn(A) - theirs).abs().max() > 1e-2


# --- users ----------------------------------------------------------------------------------

CHOICES: list[dict[str, Any]] = [
    {},
    {"users": (User(A),)},
    {"users": (User(B),)},
    {"users": (User(C),), "preference_scale": -0.7, "seed": 9},
    {"users": (User(A, 0.5), User(B, 0.5)), "steps": 2},
    {"users": (User(A, 0.3), User(B, -0.5), User(C, 1.5)), "guidance_scale": 1.0},
    {"users": ((B, 1.0),), "height": 256, "negative_prompt": "blurred"},
    {"users": (User(C),), "steps": 6, "guidance_interval": (0.2, 0.6)},
    {"height": 256, "steps": 7, "prompt": "a cat on a hill at night"},
]


@pytest.fixture(scope="module")
def requests(release: Release) -> list[GenerationRequest]:
    each = [{"prompt": "a red house", "seed": 5} | chosen for chosen in CHOICES]
    return [release.defaults.request(**chosen) for chosen in each]


Alone = Callable[[int], np.ndarray]


@pytest.fixture(scope="module")
def alone(
    backbone: StableCascade, adapter: UserAdapter, requests: list[GenerationRequest]
) -> Alone:
    made = [draw(engine_of(backbone, adapter), request)[0].latents for request in requests]
    return made.__getitem__


def test_users_differ(alone: Alone) -> None:
    """Without this, isolation would be easy."""
    for i in range(5):
        for j in range(i):
            assert not alike(alone(i), alone(j), 0.1), (i, j)


@pytest.mark.parametrize("joins_at", [1, 3, 6, 13])
def test_rows_are_isolated_in_and_between_the_stages(
    backbone: StableCascade,
    adapter: UserAdapter,
    requests: list[GenerationRequest],
    alone: Alone,
    joins_at: int,
) -> None:
    engine = engine_of(backbone, adapter)
    order = [*range(0, len(requests), 2), *range(1, len(requests), 2)]
    tickets = engine.submit_all(requests[::2])
    late: list[Ticket] = []

    def begin(progress: Progress) -> None:
        if progress.step == joins_at:
            late.extend(engine.submit_all(requests[1::2]))

    tickets[0].on_step(begin)
    with engine:
        made = [ticket.result(WAIT) for ticket in tickets]
        made += [ticket.result(WAIT) for ticket in late]
    for i, result in zip(order, made, strict=True):
        assert alike(alone(i), result.latents), f"row {i} differs beside its neighbours"


def test_nobody_s_picture_is_the_backbone_s_own(release: Release) -> None:
    backbone = release.load_backbone()
    plain = release.defaults.request("a house", seed=1)
    [bare] = draw(engine_of(backbone), plain)
    adapter = release.load_adapter(backbone)
    zero = User(np.zeros_like(A))
    for users, scale in (((), 1.0), ((zero,), 1.0), ((User(A),), 0.0)):
        request = replace(plain, users=users, preference_scale=scale)
        [made] = draw(engine_of(backbone, adapter), request)
        assert np.array_equal(made.latents, bare.latents)


# --- the engine -----------------------------------------------------------------------------


def test_counts_all_steps_and_shows_stage_b(release: Release, backbone: StableCascade) -> None:
    engine, seen = engine_of(backbone), list[Progress]()
    engine.submit(release.defaults.request("a", preview_every=3)).on_step(seen.append)
    with engine:
        pass
    steps = release.defaults.steps + STEPS_B
    assert [(p.step, p.steps) for p in seen] == [(i + 1, steps) for i in range(steps)]
    shown = {p.step: p.preview for p in seen if p.preview is not None}
    assert list(shown) == [steps - STEPS_B + i for i in (3, 6, 9)]
    assert all(p.dtype == np.uint8 and p.shape[-1] == 3 for p in shown.values())


def test_its_diffuser_shows_as_many_previews_as_are_asked_for(release: Release) -> None:
    """Of Stage B's steps, whatever Stage C's are: after the fourth and the eighth of ten."""
    actor = Diffuser(str(release.path), DiffuserPart(threads=1, rows=2, queue=4))
    asked = DrawRequest(
        prompt="a boat", negative_prompt="", seeds=[7], width=128, height=128, steps=None,
        guidance_scale=None, sampler=None, preference_scale=None, users=[], previews=2,
    )  # fmt: skip
    wanted = actor._wanted(asked, 0)
    assert (wanted.steps, wanted.preview_every) == (release.defaults.steps, 4)
    actor._engine.stop()


def test_cancelled_in_stage_b(
    backbone: StableCascade, adapter: UserAdapter, requests: list[GenerationRequest], alone: Alone
) -> None:
    engine = engine_of(backbone, adapter)
    leaves, stays = engine.submit_all([requests[1], requests[2]])
    leaves.on_step(lambda p: leaves.cancel() if p.step == 6 else None)
    with engine:
        with pytest.raises(Cancelled):
            leaves.result(WAIT)
        assert alike(alone(2), stays.result(WAIT).latents)
    assert engine.active == 0 and engine.queued == 0


# --- what it takes and refuses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({"width": 192}, "width"),
        ({"height": 0}, "height"),
        ({"height": 2176}, "height"),
        ({"sampler": "ddim"}, "sampler"),
        ({"steps": 0}, "steps"),
    ],
)
def test_refuses_by_name(
    release: Release, backbone: StableCascade, chosen: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        engine_of(backbone).submit(release.defaults.request("a", **chosen))
    assert refused.value.field == field
    if field in ("width", "height"):
        assert "multiple of 128" in str(refused.value)


def test_its_usual_sizes_are_possible(backbone: StableCascade) -> None:
    """The latents' shapes are those of diffusers' roundings, and the picture's size comes out."""
    for width, height in StableCascade.usual.sizes:
        c = backbone.latent_shape(width, height)
        assert c == (16, -(-height // 42.67), -(-width // 42.67))
        b = backbone.later[0].latent_shape(width, height)
        assert b == (4, int(c[1] * 10.67), int(c[2] * 10.67)) == (4, height // 4, width // 4)


def test_the_two_published_halves_become_one_directory(
    release: Release, backbone: StableCascade, stock: StableCascadeCombinedPipeline, tmp_path: Path
) -> None:
    """As the hub has them: a prior and a decoder, each with its own text encoder."""
    for name, cls, pipe in (
        ("prior", StableCascadePriorPipeline, stock.prior_pipe),
        ("decoder", StableCascadeDecoderPipeline, stock.decoder_pipe),
    ):
        assert isinstance(pipe, cls)
        pipe.save_pretrained(tmp_path / name)
    join(
        tmp_path / "one", tmp_path / "prior", tmp_path / "decoder",
        dtype=torch.float32, variant=None,
    )  # fmt: skip
    joined = load_backbone(tmp_path / "one")
    request = release.defaults.request("a house", seed=3)
    [one], [other] = draw(engine_of(joined), request), draw(engine_of(backbone), request)
    assert np.array_equal(one.pixels, other.pixels)


def test_refuses_a_directory_without_a_stage(tmp_path: Path) -> None:
    make_stable_cascade(tmp_path, make_encoder=None)
    (tmp_path / "backbone" / "decoder" / "config.json").unlink()
    with pytest.raises(ReleaseError, match="decoder"):
        load_backbone(tmp_path / "backbone")


def test_refuses_a_sampler_it_has_no_table_for(tmp_path: Path) -> None:
    pipeline = stable_cascade_pipeline()
    pipeline.register_modules(scheduler=DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ReleaseError, match="DDPMScheduler is not supported"):
        load_backbone(tmp_path)


def test_an_adapter_of_another_backbone_is_refused(release: Release, tmp_path: Path) -> None:
    release.check()
    tiny = make_tiny_release(tmp_path)
    assert tiny.adapter_path is not None and release.adapter_path is not None
    tiny.adapter_path.write_bytes(release.adapter_path.read_bytes())
    with pytest.raises(ReleaseError, match="backbone"):
        tiny._check_adapter()


# --- other ways to the same picture ---------------------------------------------------------


def test_compiled_blocks_and_chosen_kernels(
    release: Release, requests: list[GenerationRequest], alone: Alone
) -> None:
    """Both stages'. With dynamo's tracing but without a compiler: see ``test_kernels.py``."""
    backbone = load_backbone(release.backbone_path, attention_backend="_native_math")
    assert isinstance(backbone, StableCascade)
    for stage in (backbone, *backbone.later):
        chosen = [m.processor for m in stage.denoiser.modules() if hasattr(m, "processor")]
        assert chosen and all(p._attention_backend.value == "_native_math" for p in chosen)
    backbone.compile(backend="eager")
    assert backbone.bucket(5) == backbone.later[0].bucket(5) == 8
    made = draw(engine_of(backbone, release.load_adapter(backbone)), *requests[:3])
    assert all(alike(alone(i), result.latents, 1e-3) for i, result in enumerate(made))
    torch._dynamo.reset()


def test_half_precision_draws(release: Release) -> None:
    half = release.load_backbone(dtype=torch.bfloat16)
    assert isinstance(half, StableCascade)
    request = release.defaults.request("a house", users=(User(A),), preview_every=6)
    [made] = draw(engine_of(half, release.load_adapter(half)), request)
    assert np.isfinite(made.latents).all() and made.pixels.std() > 10


# --- latents for training -------------------------------------------------------------------


def test_latents_are_features_of_the_published_encoder(release: Release, tmp_path: Path) -> None:
    """Its weights are not here: the architecture's own count, and random ones in their place."""
    encoder = EfficientNetEncoder()
    backbone_of = sum(p.numel() for p in encoder.backbone.parameters())
    assert backbone_of == 20_177_488, "torchvision's efficientnet_v2_s without its classifier"
    assert {"backbone.1.0.block.0.0.weight", "backbone.4.5.block.2.fc1.bias"} < set(
        encoder.state_dict()
    )
    one = make_stable_cascade(tmp_path, make_encoder=None).load_backbone()
    pixels = torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(ReleaseError, match=FILE):
        one.to_latents(pixels)
    save_file(encoder.state_dict(), tmp_path / "backbone" / FILE)
    latents = one.to_latents(pixels)
    assert latents.shape == (2, *one.latent_shape(256, 128)) == (2, 16, 3, 6)
    assert latents.isfinite().all() and latents.std() > 0
    save_file({"backbone.0.0.weight": torch.zeros(1)}, tmp_path / "backbone" / FILE)
    with pytest.raises(ReleaseError, match="is not"):
        load_backbone(tmp_path / "backbone").to_latents(pixels)


def test_the_adapter_s_width_is_the_blocks(adapter: UserAdapter) -> None:
    assert (adapter.token_dim, len(adapter.branches), adapter.embedding_dim) == (32, 6, DIM)
