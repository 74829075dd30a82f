"""Trains the adapter: multi-user Diffusion-DPO on a frozen base (PPD, arXiv 2501.06655).

The reference is the base without the user branch: the same network, condition off. Timestep and
noise are shared inside a pair. Every embedding comes from the VLM; what a person's embedding is
made of (one reading, or the mean of several) is resampled at every step, which is what keeps the
adapter from learning its training users by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.transform import BetweenUserTransform
from training.base import noise_schedule
from training.data.pool import PairSampler, Pool
from training.data.users import Tastes
from training.objectives import dpo_loss
from training.stage import Draws, Metrics, Stage


@dataclass(frozen=True)
class Audience:
    """People with readings: VLM states ``[N, readings, hidden]``, each of ``pairs`` pairs."""

    tastes: Tastes
    states: NDArray[np.float32]
    pairs: NDArray[np.int64]

    def embedding(
        self,
        transform: BetweenUserTransform,
        people: NDArray[np.int64],
        readings: NDArray[np.int64],
    ) -> Tensor:
        """Mean of the chosen readings (``[B, k]``), weighted by their pairs: ``[B, 1, dim]``."""
        weight = self.pairs[people[:, None], readings].astype(np.float32)
        states = self.states[people[:, None], readings]
        mean = (states * weight[..., None]).sum(1) / weight.sum(1)[:, None]
        return torch.from_numpy(transform(mean[:, None]))

    def exact(self, transform: BetweenUserTransform) -> Tensor:
        """Where readings of people of such tastes lie on average: ``[N, 1, dim]``."""
        known = taste_features(self.tastes) @ taste_to_embedding(self, transform)
        return torch.from_numpy(known[:, None])


def taste_features(tastes: Tastes) -> NDArray[np.float32]:
    """A taste as the polynomial it is, ``[N, 17]``: linear and quadratic coefficients, and 1."""
    linear = tastes.weight + 2 * tastes.curvature * tastes.level
    return np.concatenate([linear, tastes.curvature, np.ones((len(tastes), 1), np.float32)], 1)


def taste_to_embedding(audience: Audience, transform: BetweenUserTransform) -> NDArray[np.float32]:
    """Ridge regression of embeddings on tastes, ``[17, dim]``: the space's own coordinates of a
    taste, read off training users."""
    everyone = np.arange(len(audience.tastes))
    every = np.tile(np.arange(audience.states.shape[1]), (len(everyone), 1))
    target = audience.embedding(transform, everyone, every)[:, 0].numpy()
    x = taste_features(audience.tastes)
    return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ target).astype(np.float32)


@dataclass(frozen=True)
class Picture:
    """What the denoiser trains on: unit-variance latents and one text state per caption."""

    latents: Tensor
    text_states: Tensor  # [captions, tokens, width]
    pool: Pool


def pair_errors(
    unet: UNet2DConditionModel,
    adapter: UserAdapter,
    picture: Picture,
    preferred: NDArray[np.int64],
    rejected: NDArray[np.int64],
    tokens_BUTD: Tensor | None,
    t: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy and reference errors of preferred and rejected: ``(m_w, m_l, r_w, r_l)``, each [B]."""
    schedule = noise_schedule()
    z = torch.cat([picture.latents[preferred], picture.latents[rejected]])
    t2, noise2 = t.repeat(2), noise.repeat(2, 1, 1, 1)
    noisy, target = schedule.add_noise(z, noise2, t2), schedule.get_velocity(z, noise2, t2)
    text = picture.text_states[picture.pool.captions[preferred]].repeat(2, 1, 1)
    noisy, target, t2, text = (x.to(unet.device) for x in (noisy, target, t2, text))

    def error() -> Tensor:
        predicted = unet(noisy, t2, encoder_hidden_states=text).sample
        return (predicted.float() - target).square().mean((1, 2, 3))

    with torch.no_grad(), adapter.condition(None):
        r_w, r_l = error().chunk(2)
    if tokens_BUTD is None:
        return r_w, r_l, r_w, r_l
    with adapter.condition(tokens_BUTD.repeat(2, 1, 1, 1)):
        m_w, m_l = error().chunk(2)
    return m_w, m_l, r_w, r_l


def preference_stage(
    name: str,
    unet: UNet2DConditionModel,
    adapter: UserAdapter,
    picture: Picture,
    audience: Audience,
    transform: BetweenUserTransform,
    directory: Path,
    *,
    steps: int,
    warm_up: tuple[float, float] = (0.3, 0.6),
    population: Tensor | None = None,
    peek: Callable[[int], Metrics] | None = None,
    batch: int = 12,
    beta: float = 300.0,
    learning_rate: float = 1e-3,
    first_timestep: int = 150,
    embedding_noise: float = 0.1,
    seed: int = 0,
    bf16: bool = False,
) -> Stage:
    """``warm_up``: up to the first share of the steps the training users' tastes are known exactly;
    from the second on there is nothing but single VLM readings, and a straight line in between.

    ``population`` ``[1, dim]``: everybody gets this one learned constant (the control without
    users; equal parameters and steps).
    """
    unet.requires_grad_(False)
    adapter.to(unet.device)
    sampler = PairSampler(picture.pool)
    people, total = audience.states.shape[:2]
    exact = audience.exact(transform)

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        who = draw.numpy.integers(people, size=batch)
        if population is None:
            reading = draw.numpy.integers(total, size=(batch, 1))
            start, end = warm_up
            read = min(1.0, max(0.0, (step / steps - start) / (end - start)))
            embedding = exact[who].lerp(audience.embedding(transform, who, reading), read)
            embedding += embedding_noise * torch.randn(embedding.shape, generator=draw.torch)
        else:
            embedding = population.expand(batch, 1, -1)
        preferred, rejected = (x[:, 0] for x in sampler.draw(audience.tastes[who], 1, draw.numpy))
        t = torch.randint(first_timestep, 1000, (batch,), generator=draw.torch)
        noise = torch.randn((batch, *picture.latents.shape[1:]), generator=draw.torch)
        tokens = adapter.project(embedding.to(unet.device))[:, None]
        errors = pair_errors(unet, adapter, picture, preferred, rejected, tokens, t, noise)
        result = dpo_loss(*errors, beta=beta)
        yield result.value, {k: float(v) for k, v in result.stats.items()}

    return Stage(
        name=name, directory=directory, modules={"adapter": adapter}, loss=loss, steps=steps,
        learning_rate=learning_rate, ema_decay=0.995, warmup=50, seed=seed,
        bf16=bf16, peek=peek, peek_every=200,
    )  # fmt: skip


@torch.no_grad()
def implicit_accuracy(
    unet: UNet2DConditionModel,
    adapter: UserAdapter,
    picture: Picture,
    audience: Audience,
    transform: BetweenUserTransform,
    *,
    pairs: int,
    draws: int = 1,
    seed: int = 0,
    batch: int = 32,
) -> float:
    """How often the policy's implicit reward agrees with a held-out choice, from one reading of the
    person (issue #2's gate). The reward is an expectation over timestep and noise: one draw of them
    is what the loss sees, the mean of several is nearer to what the policy believes."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    sampler, right = PairSampler(picture.pool), 0
    for _ in range(pairs // batch):
        who = rng.integers(len(audience.tastes), size=batch)
        reading = rng.integers(audience.states.shape[1], size=(batch, 1))
        embedding = audience.embedding(transform, who, reading)
        tokens = adapter.project(embedding.to(unet.device))[:, None]
        preferred, rejected = (x[:, 0] for x in sampler.draw(audience.tastes[who], 1, rng))
        margin = torch.zeros(batch)
        for _ in range(draws):
            t = torch.randint(150, 1000, (batch,), generator=generator)
            noise = torch.randn((batch, *picture.latents.shape[1:]), generator=generator)
            m_w, m_l, r_w, r_l = pair_errors(
                unet, adapter, picture, preferred, rejected, tokens, t, noise
            )
            margin -= ((m_w - m_l) - (r_w - r_l)).cpu()
        right += int((margin > 0).sum())
    return right / (pairs // batch * batch)
