"""Chosen kernels and compiled blocks: other ways to the same latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppd_serve.diffusion import attention
from ppd_serve.diffusion.backbone import Backbone, Text, load_backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.stable_diffusion import StableDiffusion
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import ReleaseError
from ppd_serve.release import Release
from tests.diffusion.test_isolation import embedding
from tests.tiny_release import EMBEDDING_ROWS

WAIT = 300


@pytest.fixture
def wanted(release: Release) -> list[GenerationRequest]:
    """Five parts together: two guided, one not."""
    a, b = embedding(1), embedding(2)
    choices: list[dict[str, Any]] = [
        {},
        {"users": (User(a, 0.7), User(b, -0.4)), "sampler": "euler"},
        {"users": (User(b),), "guidance_scale": 1.0},
    ]
    return [
        release.defaults.request("a house", seed=i, steps=2, **choice)
        for i, choice in enumerate(choices)
    ]


def draw(release: Release, backbone: Backbone, wanted: list[GenerationRequest]) -> list[np.ndarray]:
    engine = Engine(backbone, release.load_adapter(backbone), embedding_rows=EMBEDDING_ROWS)
    tickets = engine.submit_all(wanted)
    with engine:
        return [ticket.result(WAIT).latents for ticket in tickets]


@pytest.fixture
def expected(
    backbone: Backbone, adapter: UserAdapter, wanted: list[GenerationRequest]
) -> list[np.ndarray]:
    engine = Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS)
    tickets = engine.submit_all(wanted)
    with engine:
        return [ticket.result(WAIT).latents for ticket in tickets]


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_every_attention_runs_on_the_chosen_kernel(
    release: Release,
    wanted: list[GenerationRequest],
    expected: list[np.ndarray],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = []
    honest = attention.dispatch_attention_fn

    def watched(*args: Any, backend: Any, **others: Any) -> Tensor:
        chosen.append(backend.value)
        return honest(*args, backend=backend, **others)

    monkeypatch.setattr(attention, "dispatch_attention_fn", watched)
    backbone = load_backbone(release.backbone_path, attention_backend=name)
    made = draw(release, backbone, wanted)
    assert np.allclose(made, expected, atol=1e-4)
    attentions = len(backbone.denoiser.attn_processors)
    assert chosen == [name] * attentions * 2, "all of them, at both steps"


def test_refuses_kernels_that_are_not_there(release: Release) -> None:
    for name in ("magic", "flash"):
        if name == "flash" and torch.cuda.is_available():
            continue
        with pytest.raises(ReleaseError, match="attention_backend"):
            load_backbone(release.backbone_path, attention_backend=name)


def test_compile_is_for_gpus(release: Release) -> None:
    backbone = load_backbone(release.backbone_path, "cpu", compile=True)
    assert backbone.bucket(5) == 5


def test_compiled_blocks_see_few_batch_sizes_and_every_user(
    release: Release,
    wanted: list[GenerationRequest],
    expected: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With dynamo's tracing but without a compiler, which is what can go wrong with our processors:
    the condition is state that a compiled form could wrongly keep."""
    backbone = release.load_backbone()
    assert isinstance(backbone, StableDiffusion)
    backbone.compile(backend="eager")
    sizes = []
    honest = backbone.denoise

    def watched(x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        sizes.append(len(x_BCHW))
        return honest(x_BCHW, timesteps_B, text)

    monkeypatch.setattr(backbone, "denoise", watched)
    assert np.allclose(draw(release, backbone, wanted), expected, atol=1e-4)
    assert sizes == [8, 8]
    # Other users at the sizes that are compiled already, and nobody.
    lonely = [draw(release, backbone, [request])[0] for request in wanted]
    assert np.allclose(lonely, expected, atol=1e-4)
    assert sizes[2:] == [2, 2, 2, 2, 1, 1]
    # Three and four with two users each are one form, which the mixed batch of three was, too.
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    for count in (3, 4):
        draw(release, backbone, [replace(wanted[1], seed=seed) for seed in range(count)])
    assert stats["unique_graphs"] == before > 0
    torch._dynamo.reset()
