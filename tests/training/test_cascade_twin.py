"""Stable Cascade in miniature through the trainer: Stage C's adapter on EfficientNet's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ppd_serve.diffusion.effnet import FILE, EfficientNetEncoder
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import User
from ppd_serve.release import Release, load_release, write_release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS
from tests.training.shards import row
from tests.training.twin_step import one_step, prepare_with_planted_readings
from tests.twins.stable_cascade import make_stable_cascade
from training.data.choice_set import ChoiceSet
from training.data.choices import choice_of
from training.policy import Conditioning, Policy
from training.recipes import Objective, Recipe
from training.recipes import recipe as named_recipe
from training.train import PreferenceTraining, stage_of


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """With the encoder of its latents: the published one's layers, random weights."""
    made = make_stable_cascade(tmp_path_factory.mktemp("release"), make_encoder=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = EfficientNetEncoder().half().state_dict()
    save_file(state, made.backbone_path / FILE)
    return write_release(made.path, made.manifest)


@pytest.fixture(scope="module")
def data(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    prepare_with_planted_readings(release, path)
    return path


def recipe(objective: Objective, conditioning: Conditioning = "user", **more: object) -> Recipe:
    return Recipe(
        objective=objective, conditioning=conditioning, steps=1, batch=4, micro_batch=2,
        learning_rate=1e-3, warmup=0, beta=100.0, empty_prompts=0.3, **more,
    )  # fmt: skip


def test_what_is_prepared(release: Release, data: Path) -> None:
    choices, backbone = ChoiceSet.load(data / "train"), release.load_backbone()
    assert choices.latents.shape[1:] == backbone.latent_shape(128, 128) == (16, 3, 3)
    assert np.isfinite(choices.latents).all() and choices.latents.std() > 0
    assert set(choices.text) == {"states", "pooled"}
    found = choices.states(choices.prompt[:1])
    for key, expected in backbone.encode(choice_of(row(0, user=0)).prompt).items():
        assert torch.equal(found[key], expected), key


@pytest.mark.parametrize("conditioning", ["none", "user"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "rpo"])
def test_a_step_of_every_objective_moves_the_adapter(
    release: Release, data: Path, tmp_path: Path, objective: Objective, conditioning: Conditioning
) -> None:
    one_step(release, data, tmp_path, recipe(objective, conditioning))
    trained = load_file(tmp_path / "ip_adapter.safetensors")
    values = [x for key, x in trained.items() if "to_v_ip" in key]
    assert len(values) == 6 and all(x.any() for x in values)  # they start at zero


def test_a_new_branch_is_the_reference_while_gradients_are_checkpointed(
    release: Release, data: Path, tmp_path: Path
) -> None:
    """Its UNet has dropout, which would tell policy and reference apart by chance."""
    how = recipe("dpo", gradient_checkpointing=True)
    choices = ChoiceSet.load(data / "train")
    policy = Policy(
        release.load_backbone(), weights="adapter", conditioning="user",
        embedding_shape=choices.embedding_shape,
    )  # fmt: skip
    run = PreferenceTraining(how, choices, policy)
    stage_of(run, "dpo", tmp_path)
    assert policy.backbone.denoiser.training
    samples = run.samples(0, range(4))
    with run.conditioned(samples):
        errors = run.errors(samples)
    assert torch.equal(errors.m, errors.r) and errors.m.requires_grad


@pytest.mark.parametrize("name", ["pickapic-stable-cascade-dpo", "pickapic-stable-cascade-ppd"])
def test_a_step_of_a_published_recipe(
    release: Release, data: Path, tmp_path: Path, name: str
) -> None:
    """A LoRA without users, on a UNet that diffusers has none for; the branch with them."""
    how = named_recipe(name, steps=1, batch=4, micro_batch=2, warmup=0, learning_rate=1e-2)
    assert how.weights == ("adapter" if name.endswith("ppd") else "lora")
    one_step(release, data, tmp_path, how)
    if how.weights == "lora":
        trained = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        moved = [x for key, x in trained.items() if "lora_B" in key]  # they start at zero
        assert moved and all(x.any() for x in moved)
    else:
        assert load_file(tmp_path / "ip_adapter.safetensors")["ip_adapter.1.to_v_ip.weight"].any()


def test_what_was_trained_is_served(release: Release, data: Path, tmp_path: Path) -> None:
    one_step(release, data, tmp_path, recipe("dpo"))
    after = load_release(tmp_path / "release")
    after.check()
    user = User(np.random.default_rng(5).standard_normal((EMBEDDING_ROWS, EMBEDDING_DIM), "f4"))

    def drawn(of: Release, *users: User) -> np.ndarray:
        backbone = of.load_backbone()
        adapter = of.load_adapter(backbone)
        with Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS) as engine:
            request = of.defaults.request("a house", users=users, seed=1)
            return engine.submit(request).result(60).latents

    nobody = drawn(after)
    assert np.abs(nobody - drawn(release)).max() < 1e-4 * nobody.std()
    assert np.abs(drawn(after, user) - nobody).max() > 1e-4 * nobody.std()
    assert np.abs(drawn(after, user) - drawn(release, user)).max() > 1e-2 * nobody.std()
