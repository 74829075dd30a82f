"""Multi-user DPO on a toy base: it learns planted tastes, and without users it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.transform import BetweenUserTransform
from training.data.pool import PairSampler, Pool
from training.data.users import Tastes
from training.data.world import AXES, CAPTIONS
from training.preference import Audience, Picture, implicit_accuracy, pair_errors, preference_stage

DIM, WIDTH, TOKENS = 4, 16, 5


@dataclass
class Planted:
    """Half of the people like what is bright, half what is dark; brightness is a latent channel."""

    unet: UNet2DConditionModel
    picture: Picture
    audience: Audience
    transform: BetweenUserTransform

    def adapter(self) -> UserAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return UserAdapter.for_unet(self.unet, DIM)


@pytest.fixture
def planted() -> Planted:
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4, in_channels=2, out_channels=2, layers_per_block=1,
            block_out_channels=(16, 16), cross_attention_dim=WIDTH, attention_head_dim=2,
            norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        text_states = torch.randn(len(CAPTIONS), TOKENS, WIDTH)
        latents = 0.3 * torch.randn(200, 2, 4, 4)
    bright = rng.choice([-1.0, 1.0], 200).astype(np.float32)
    latents[:, 0] += torch.from_numpy(bright)[:, None, None]
    scores = np.zeros((200, len(AXES)), np.float32)
    scores[:, 1] = bright
    pool = Pool(np.zeros((200, 1, 1, 3), np.uint8), np.arange(200) % 4, scores)

    side = np.where(np.arange(40) % 2 == 0, 1.0, -1.0).astype(np.float32)
    weight = np.zeros((40, len(AXES)), np.float32)
    weight[:, 1] = 3 * side
    states = (0.1 * rng.normal(size=(40, 3, DIM))).astype(np.float32)
    states[:, :, 0] += side[:, None]
    audience = Audience(
        Tastes(weight, np.zeros_like(weight), np.zeros_like(weight)),
        states,
        rng.integers(1, 5, (40, 3)),
    )
    transform = BetweenUserTransform(
        np.zeros((1, DIM), np.float32), np.eye(DIM, dtype=np.float32)[None]
    )
    return Planted(unet, Picture(latents, text_states, pool), audience, transform)


def stage(planted: Planted, adapter: UserAdapter, directory: Path, *, population: bool, steps: int):
    made = preference_stage(
        "population" if population else "adapter", planted.unet, adapter, planted.picture,
        planted.audience, planted.transform, directory, steps=steps, batch=8, beta=100.0,
        learning_rate=1e-2,
        population=torch.ones(1, DIM) if population else None,
    )  # fmt: skip
    made.warmup = 3
    return made


def accuracy(planted: Planted, adapter: UserAdapter) -> float:
    return implicit_accuracy(
        planted.unet, adapter, planted.picture, planted.audience, planted.transform, pairs=256
    )


def test_planted_tastes_are_learned_and_a_constant_cannot(planted: Planted, tmp_path: Path) -> None:
    adapter = planted.adapter()
    made = stage(planted, adapter, tmp_path, population=False, steps=60)
    assert made.run()
    assert made.history[-1]["loss"] < 0.69
    personal = accuracy(planted, adapter)
    assert personal > 0.7

    alone = planted.adapter()
    assert stage(planted, alone, tmp_path, population=True, steps=20).run()
    constant = torch.ones(1, 1, DIM)
    tokens = alone.project(constant.expand(len(planted.audience.tastes), 1, -1))
    assert torch.equal(tokens[0], tokens[1])  # everybody gets the same
    planted.audience.states[:] = 0  # nobody is told apart, as in its training
    assert accuracy(planted, alone) < personal - 0.1


def test_only_the_adapter_learns(planted: Planted, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in planted.unet.state_dict().items()}
    adapter = planted.adapter()
    assert stage(planted, adapter, tmp_path, population=False, steps=3).run()
    after = planted.unet.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def errors(planted: Planted, adapter: UserAdapter, tokens: torch.Tensor | None):
    rng = np.random.default_rng(1)
    preferred, rejected = (
        x[:, 0] for x in PairSampler(planted.picture.pool).draw(planted.audience.tastes[:6], 1, rng)
    )
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(150, 1000, (6,), generator=generator)
    noise = torch.randn(6, 2, 4, 4, generator=generator)
    return pair_errors(
        planted.unet, adapter, planted.picture, preferred, rejected, tokens, t, noise
    )


def test_a_new_adapter_and_a_zero_user_are_the_reference(planted: Planted) -> None:
    adapter = planted.adapter()
    users = torch.randn(6, 1, DIM)
    m_w, m_l, r_w, r_l = errors(planted, adapter, adapter.project(users)[:, None])
    torch.testing.assert_close(m_w, r_w, atol=1e-6, rtol=0)  # V starts at zero
    torch.testing.assert_close(m_l, r_l, atol=1e-6, rtol=0)
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight)
    m_w, _, r_w, _ = errors(planted, adapter, adapter.project(users)[:, None])
    assert (m_w - r_w).abs().min() > 1e-5
    m_w, m_l, r_w, r_l = errors(planted, adapter, adapter.project(0 * users)[:, None])
    assert torch.equal(m_w, r_w) and torch.equal(m_l, r_l)


def test_a_dropped_user_has_no_gradient(planted: Planted) -> None:
    """Zero embedding = base, so its row teaches the projection and the branches nothing."""
    from training.objectives import dpo_loss

    adapter = planted.adapter()
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight)
    tokens = adapter.project(torch.zeros(6, 1, DIM))[:, None]
    dpo_loss(*errors(planted, adapter, tokens), beta=1000.0).value.backward()
    for parameter in adapter.trainable_parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_an_embedding_is_the_mean_of_readings_by_their_pairs(planted: Planted) -> None:
    audience = planted.audience
    found = audience.embedding(planted.transform, np.array([3, 5]), np.array([[0, 2], [1, 0]]))
    assert found.shape == (2, 1, DIM)
    pairs, states = audience.pairs[3], audience.states[3]
    expected = (pairs[0] * states[0] + pairs[2] * states[2]) / (pairs[0] + pairs[2])
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-6)
