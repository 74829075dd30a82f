"""An adapter as it is published: with biases, so that zero makes tokens like anything else.

What holds of our own holds of it: stock diffusers draws the same, nobody is the plain base, rows
owe nothing to their neighbours.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import ReleaseError
from ppd_serve.release import Release, write_release
from tests.diffusion.test_isolation import (  # noqa: F401 (fixtures, and tests to be run here too)
    Run,
    check_isolation,
    embedding,
    requests,
    run,
    test_a_zero_embedding_is_nobody,
    test_scale_zero_is_nobody,
    test_two_halves_of_a_user_are_the_user,
)
from tests.diffusion.test_stock_diffusers import (  # noqa: F401
    stock,
    test_reproduces_the_engine,
)
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS, make_tiny_release
from tests.twins.day_one import add_biases
from training.policy import Policy


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    made = make_tiny_release(tmp_path_factory.mktemp("public"))
    assert made.adapter_path is not None
    add_biases(made.adapter_path)
    return write_release(made.path, made.manifest)


@pytest.fixture(scope="module")
def backbone(release: Release) -> Backbone:
    return release.load_backbone()


@pytest.fixture(scope="module")
def adapter(release: Release, backbone: Backbone) -> UserAdapter:
    adapter = release.load_adapter(backbone)
    assert adapter is not None
    return adapter


def test_it_is_a_release_like_any_other(release: Release, adapter: UserAdapter) -> None:
    release.check()
    assert adapter.has_biases
    assert adapter.project(torch.zeros(1, EMBEDDING_ROWS, EMBEDDING_DIM)).abs().max() > 0.1


def test_nobody_is_the_plain_base_bit_for_bit(
    release: Release,
    backbone: Backbone,
    adapter: UserAdapter,
) -> None:
    bare = release.load_backbone()  # on which no adapter was ever installed
    zero = User(np.zeros((EMBEDDING_ROWS, EMBEDDING_DIM), np.float32))
    asked = [{}, {"users": (zero,)}, {"users": (User(embedding(1)),), "preference_scale": 0.0}]
    wanted = [release.defaults.request("a house", seed=5, **more) for more in asked]
    with Engine(bare, None, embedding_rows=EMBEDDING_ROWS) as engine:
        plain = engine.submit(wanted[0]).result(60).latents
    with Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS) as engine:
        for request in wanted:
            assert np.array_equal(engine.submit(request).result(60).latents, plain)
        someone = release.defaults.request("a house", seed=5, users=(User(embedding(1)),))
        assert np.abs(engine.submit(someone).result(60).latents - plain).max() > 1e-2


def test_neighbours_do_not_matter(run: Run, requests: list[GenerationRequest]) -> None:  # noqa: F811
    check_isolation(run, requests)


def test_training_does_not_go_on_from_it(release: Release, tmp_path: Path) -> None:
    """There, a dropped user must be the reference exactly."""
    assert release.adapter_path is not None
    policy = Policy(
        release.load_backbone(), weights="adapter", conditioning="user",
        embedding_shape=(EMBEDDING_ROWS, EMBEDDING_DIM),
    )  # fmt: skip
    with pytest.raises(ReleaseError, match="biases"):
        policy.load_adapter(release.adapter_path)
    free = shutil.copy(release.adapter_path, tmp_path / "free.safetensors")
    state = load_file(free)
    save_file({k: x * (not k.endswith("bias")) for k, x in state.items()}, free)
    policy.load_adapter(Path(free))
