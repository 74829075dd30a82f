"""SDXL in miniature through the trainer as people run it: choices, one step, and a new release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import User
from ppd_serve.release import Release, load_release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS
from tests.training.shards import row
from tests.training.twin_step import one_step, prepare_with_planted_readings
from tests.twins.releases import TWINS
from training.data.choice_set import ChoiceSet
from training.data.choices import choice_of
from training.policy import Conditioning, Weights
from training.recipes import Objective, Recipe
from training.recipes import recipe as named_recipe


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return TWINS["sdxl"](tmp_path_factory.mktemp("release"), make_encoder=None)


@pytest.fixture(scope="module")
def data(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    prepare_with_planted_readings(release, path)
    return path


def recipe(
    objective: Objective, conditioning: Conditioning, weights: Weights = "adapter"
) -> Recipe:
    return Recipe(
        objective=objective, conditioning=conditioning, weights=weights, steps=1, batch=4,
        micro_batch=2, learning_rate=1e-3, warmup=0, beta=100.0, empty_prompts=0.3,
    )  # fmt: skip


def test_what_is_prepared(release: Release, data: Path) -> None:
    """Everything the denoiser is told of a prompt; and no prompt as SDXL knows it, last."""
    choices, backbone = ChoiceSet.load(data / "train"), release.load_backbone()
    assert choices.latents.shape[1:] == backbone.latent_shape(*release.defaults.sizes[0])
    assert set(choices.text) == {"states", "pooled"}
    for key, kept in choices.text.items():
        assert not kept[-1].any() and kept[:-1].any(), key
    prompt = choice_of(row(0, user=0)).prompt
    found = choices.states(choices.prompt[:1])
    for key, expected in backbone.encode(prompt).items():
        assert torch.equal(found[key], expected), key


@pytest.mark.parametrize("conditioning", ["none", "user"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "rpo"])
def test_a_step_of_every_objective_moves_the_adapter(
    release: Release, data: Path, tmp_path: Path, objective: Objective, conditioning: Conditioning
) -> None:
    one_step(release, data, tmp_path, recipe(objective, conditioning))
    trained = load_file(tmp_path / "ip_adapter.safetensors")
    values = [x for key, x in trained.items() if "to_v_ip" in key]
    assert values and all(x.any() for x in values)  # they start at zero


@pytest.mark.parametrize("conditioning", ["none", "user"])
def test_a_step_of_a_lora(
    release: Release, data: Path, tmp_path: Path, conditioning: Conditioning
) -> None:
    one_step(release, data, tmp_path, recipe("dpo", conditioning, "lora"))
    trained = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    moved = [x for key, x in trained.items() if "lora_B" in key]  # they start at zero
    assert moved and all(x.any() for x in moved)
    assert (tmp_path / "ip_adapter.safetensors").exists() == (conditioning == "user")
    stock = StableDiffusionXLPipeline.from_pretrained(release.backbone_path)
    stock.load_lora_weights(tmp_path)
    for name, value in get_peft_model_state_dict(stock.unet, adapter_name="default_0").items():
        assert torch.equal(value, trained[f"unet.{name}"]), name


@pytest.mark.parametrize("name", ["pickapic-sdxl-ppd", "pickapic-sdxl-dpo"])
def test_a_step_of_a_published_recipe(
    release: Release, data: Path, tmp_path: Path, name: str
) -> None:
    """bfloat16, checkpointed gradients, Adafactor on all weights: as it is but for its length."""
    how = named_recipe(name, steps=1, batch=4, micro_batch=2, warmup=0, learning_rate=1e-2)
    assert how.bf16 and how.gradient_checkpointing
    one_step(release, data, tmp_path, how)
    if how.weights == "full":
        before = load_file(release.backbone_path / "unet" / "diffusion_pytorch_model.safetensors")
        after = load_file(tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors")
        for part in ("conv_in", "add_embedding.linear_1", "mid_block.attentions.0.proj_in"):
            assert not torch.equal(before[f"{part}.weight"], after[f"{part}.weight"]), part
    else:
        assert load_file(tmp_path / "ip_adapter.safetensors")["ip_adapter.1.to_v_ip.weight"].any()


def test_what_was_trained_is_served(release: Release, data: Path, tmp_path: Path) -> None:
    one_step(release, data, tmp_path, recipe("dpo", "user"))
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
    assert np.array_equal(nobody, drawn(release))
    assert np.abs(drawn(after, user) - nobody).max() > 1e-4
    assert np.abs(drawn(after, user) - drawn(release, user)).max() > 1e-2
