"""Trains the studio's VLM, in two stages.

*look*: vision tower and connector learn to see style (regression of judged scores; the head is
thrown away). *profile*: on fixed picture features the language part reads 1-4 pairs of a training
user; where the profile begins, its state must rank further choices of that user (a ranking loss
over hidden states, no list of axes), and it learns to write the profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ppd_serve.preferences.encoder import CHUNK
from training.autoencoder import to_input
from training.data.bayes import Prior
from training.data.pool import PairSampler, Pool
from training.data.users import Tastes, sample_tastes
from training.data.world import AXES
from training.stage import Draws, Metrics, Stage
from training.vlm import PATCH, Reader, image_features, profile_of

Index = NDArray[np.int64]
_TEACHER = 4_000  # people among whom Bayes' rule looks
_SHORT, _MIXED = (0.6, 0.4, 0, 0), (0.1, 0.15, 0.2, 0.55)  # shares of 1, 2, 3 and 4 pairs


@torch.no_grad()
def whiten_patches(model: Any, images: NDArray[np.uint8]) -> None:
    """Start the patch embedding at whitened principal components: fine texture is small variance,
    and found four times faster this way."""
    layer = model.model.vision_model.embeddings.patch_embedding
    patches = (
        F.unfold(to_input(images), PATCH, stride=PATCH).permute(0, 2, 1).reshape(-1, 3 * PATCH**2)
    )
    mean = patches.mean(0)
    _, value, vector = torch.linalg.svd(
        patches[:: len(patches) // 20_000 + 1] - mean, full_matrices=False
    )
    spread = value / value.numel() ** 0.5
    rows = vector[: layer.weight.shape[0]] / (spread[: layer.weight.shape[0], None] + 0.02) * 0.7
    layer.weight.copy_(rows.reshape(layer.weight.shape))
    layer.bias.copy_(-rows @ mean)


def look_stage(
    model: Any, pool: Pool, held_out: Pool, directory: Path, *, steps: int, batch: int = 48
) -> Stage:
    """Vision tower and connector regress the judged scores."""
    model.requires_grad_(False)
    device = model.device
    seeing = nn.ModuleDict(
        {"vision": model.model.vision_model, "connector": model.model.connector}
    ).requires_grad_(True)
    width = model.config.text_config.hidden_size
    head = nn.Sequential(nn.Flatten(), nn.LayerNorm(4 * width), nn.Linear(4 * width, len(AXES)))
    head.to(device)
    target = torch.from_numpy(pool.scores).to(device)

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        picked = draw.numpy.integers(len(pool), size=batch)
        predicted = head(image_features(model, to_input(pool.images[picked]).to(device)))
        yield F.mse_loss(predicted, target[picked]), {}

    @torch.no_grad()
    def peek(_: int) -> Metrics:
        seen = image_features(model, to_input(held_out.images[:300]).to(device))
        predicted = head(seen).float().cpu().numpy()
        error = ((predicted - held_out.scores[:300]) ** 2).mean(0)
        explained = 1 - error / held_out.scores[:300].var(0)
        return {f"r2_{a}": round(float(v), 3) for a, v in zip(AXES, explained, strict=True)}

    return Stage(
        name="look", directory=directory, modules={"seeing": seeing, "head": head}, loss=loss,
        steps=steps, learning_rate=1e-3, ema_decay=0.99, peek=peek, peek_every=300,
    )  # fmt: skip


def profile_stage(
    reader: Reader,
    pool: Pool,
    directory: Path,
    *,
    steps: int,
    readings: int = 96,
    questions: int = 32,
    rank: int = 48,
    people: Tastes | None = None,
    held_out: tuple[Reader, Pool, Tastes] | None = None,
    trained: bool = False,
) -> Stage:
    """Language part: rank a person's further choices from 1-4 of their pairs, write the profile.

    ``trained``: it can do so already; only its heads are new, and they learn alone at first.
    """
    model = reader.model
    width = model.config.text_config.hidden_size
    model.requires_grad_(False)
    language = nn.ModuleDict({"text": model.model.text_model, "head": model.lm_head})
    language.requires_grad_(True)
    picture = nn.Sequential(
        nn.Flatten(-2),
        nn.LayerNorm(4 * width),
        nn.Linear(4 * width, 96),
        nn.GELU(),
        nn.Linear(96, rank),
    )
    person = nn.Linear(width, rank)
    difference = nn.Linear(width, len(AXES))
    for head in (picture, person, difference):
        head.to(model.device)
    sampler, prior = PairSampler(pool), Prior.of(_TEACHER, seed=13)

    def logits(read: Reader, state: Tensor, first: Index, second: Index) -> Tensor:
        """How much rather the first of two pictures ``[B, Q]``."""
        margin = picture(read.features[first]) - picture(read.features[second])
        return (margin * person(state)[:, None]).sum(-1) / rank**0.5

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        # Short contexts first: one pair is the whole lesson, four are a longer one.
        short = step < 0.15 * steps and not trained
        count = int(draw.numpy.choice(CHUNK, p=_SHORT if short else _MIXED)) + 1
        rows = readings // max(2, count)
        tastes = (
            sample_tastes(rows, draw.numpy)
            if people is None
            else people[draw.numpy.integers(len(people), size=rows)]
        )
        preferred, rejected = sampler.draw(tastes, count, draw.numpy)
        profiles = [profile_of(tastes, i) for i in range(rows)]
        state, writing = reader.states(pool.captions[preferred], preferred, rejected, profiles)
        if trained and step < 0.1 * steps:
            state = state.detach()
        asked, other = sampler.draw(tastes, questions, draw.numpy)
        # The answers themselves would teach the same in the end; what Bayes' rule expects of them
        # says it without their noise.
        posterior = prior.posterior(pool.scores[preferred], pool.scores[rejected])
        expected = prior.foreseen(posterior, pool.scores[asked], pool.scores[other])
        logit = logits(reader, state, asked, other)
        target = torch.from_numpy(expected).to(logit)
        rank_loss = F.binary_cross_entropy_with_logits(logit, target)
        surprise = rank_loss.detach() - F.binary_cross_entropy(target, target)
        # A dense lesson to start from: what do the preferred pictures have more of? Without it the
        # ranking loss sits at chance for hundreds of steps.
        more = (pool.scores[preferred] - pool.scores[rejected]).mean(1) * (count / 2) ** 0.5
        dense = F.mse_loss(difference(state), torch.from_numpy(more).to(model.device))
        share = 0.1 if trained else max(0.1, 1 - step / (0.5 * steps))
        assert writing is not None
        yield (
            3 * rank_loss + share * dense + 0.2 * writing,
            {
                "rank": float(rank_loss.detach()),
                "behind_bayes": float(surprise),
                "dense": float(dense.detach()),
                "accuracy": float((logit > 0).float().mean()),
                "writing": float(writing.detach()),
            },
        )

    @torch.no_grad()
    def peek(step: int) -> Metrics:
        if held_out is None:
            return {}
        read, other, tastes = held_out
        rng = np.random.default_rng(0)
        sample, found = PairSampler(other), {}
        for count in (1, 2, 4):
            w, x = sample.draw(tastes, count, rng)
            state, _ = read.states(other.captions[w], w, x)
            logit = logits(read, state, *sample.draw(tastes, 64, rng))
            found[f"dev_accuracy_{count}"] = float((logit > 0).float().mean())
        return found

    return Stage(
        name="profile", directory=directory,
        modules={
            "language": language, "picture": picture, "person": person, "difference": difference,
        },
        loss=loss,
        steps=steps, learning_rate=3e-4 if trained else 1e-3, betas=(0.9, 0.98), ema_decay=0.995,
        peek=peek, peek_every=200,
    )  # fmt: skip
