"""The studio's comparison: one picture per user and condition at one seed, judged from pixels.

Every user is new, every prompt a held-out caption. The base's picture and the personal one share
seed and prompt, so nothing but the taste differs; one comparison per user makes the Wilson interval
honest. The controls say how much of a win is personal: another user's embedding (mismatched), one
learned constant for everybody (population), a person whose taste is known exactly (true taste) or
inferred by Bayes' rule with the frozen prior from the same choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import Defaults, GenerationRequest, User
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.preferences.pair_encoder import PairEncoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release
from training.data.bayes import Prior
from training.data.fingerprint import FROZEN, fingerprint
from training.data.judge import scores
from training.data.pool import PairSampler, Pool, load_pool
from training.data.rows import pair_of, studio_rows
from training.data.users import Tastes, people
from training.data.world import CAPTIONS, HELD_OUT_CAPTIONS
from training.evaluate.content import ContentJudge, content_right

Array = NDArray[np.float32]
MOST_PAIRS = 16
_POOLS = {"confirm": "test"}  # further people, the same pictures
_SEEDS = {"dev": 20_000, "test": 40_000, "confirm": 60_000}


@dataclass(frozen=True)
class Panel:
    """``N`` users of a split, each with choices already made and one prompt to be drawn."""

    tastes: Tastes
    pool: Pool
    preferred: NDArray[np.int64]  # [N, 16] pool indices, arrival order
    rejected: NDArray[np.int64]
    captions: NDArray[np.int64]  # [N] held-out captions
    seeds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tastes)

    def pairs(self, user: int, count: int) -> list[Pair]:
        chosen = np.s_[user : user + 1, :count]
        rows = studio_rows(self.pool, self.preferred[chosen], self.rejected[chosen])
        return [pair for row in rows if (pair := pair_of(row))]

    def __getitem__(self, users: slice | NDArray[np.int64]) -> Panel:
        return Panel(
            self.tastes[users], self.pool, self.preferred[users], self.rejected[users],
            self.captions[users], self.seeds[users],
        )  # fmt: skip


def new_panel(split: str, count: int, pool: Pool) -> Panel:
    tastes = people(split, count)
    rng = np.random.default_rng(_SEEDS[split])
    preferred, rejected = PairSampler(pool).draw(tastes, MOST_PAIRS, rng)
    held_out = np.array([CAPTIONS.index(c) for c in HELD_OUT_CAPTIONS])
    return Panel(
        tastes,
        pool,
        preferred,
        rejected,
        rng.choice(held_out, count),
        _SEEDS[split] + np.arange(count),
    )


def panel_of(work: Path, split: str, count: int, pool_size: int) -> Panel:
    """A split's users over the pool that its choices come from; painted if it is not there, and
    only in the world that figures speak of (SystemExit)."""
    if fingerprint() != FROZEN:
        raise SystemExit("the studio world has changed since it was frozen: no figure would count")
    return new_panel(split, count, load_pool(work / "pool", _POOLS.get(split, split), pool_size))


def reading_encoder(release: Release) -> Encoder:
    """The release's encoder; without writing profiles, where they cannot change an embedding."""
    encoder = release.load_vlm()
    skip_profiles(encoder)
    return encoder


def skip_profiles(encoder: PairEncoder) -> None:
    """Write no more about people than the embedding needs, which may be nothing."""
    if isinstance(encoder, Encoder) and encoder.config.position == "before_profile":
        encoder.config = encoder.config.model_copy(update={"profile": "skip"})


def embeddings(encoder: Encoder, panel: Panel, pairs: int) -> Array:
    """Through the shipped encoder, as the server does it: ``[N, rows, dim]``."""
    every = track(range(len(panel)), description=f"reading {pairs} pairs")
    return np.stack([encoder.embed(panel.pairs(user, pairs)).embedding for user in every])


def requests(
    panel: Panel,
    defaults: Defaults,
    users: Sequence[Sequence[tuple[Array, float]]] | None,
    **chosen: float,
) -> list[GenerationRequest]:
    """One request per user of the panel; ``users[i]`` are the (embedding, weight) of picture i."""
    return [
        defaults.request(
            str(CAPTIONS[panel.captions[i]]),
            seed=int(panel.seeds[i]),
            users=tuple(User(e, w) for e, w in users[i]) if users is not None else (),
            **chosen,
        )
        for i in range(len(panel))
    ]


def drawn(
    engine: Engine, wanted: Iterable[GenerationRequest], label: str
) -> Iterator[NDArray[np.uint8]]:
    """Pictures ``[H, W, 3]`` one after another, in order; keeps the engine's queue filled without
    overrunning it."""
    wanted = list(wanted)
    block = 4 * engine.max_rows
    for start in track(range(0, len(wanted), block), description=label):
        tickets = engine.submit_all(wanted[start : start + block])
        for ticket in tickets:
            yield ticket.result().pixels


def draw(engine: Engine, wanted: Iterable[GenerationRequest], label: str) -> NDArray[np.uint8]:
    """All pictures at once, ``[N, H, W, 3]``."""
    return np.stack(list(drawn(engine, wanted, label)))


@dataclass(frozen=True)
class Outcome:
    """Pictures of one condition with what the judges say of them."""

    images: NDArray[np.uint8]
    scores: Array  # [N, 8]
    reward: Array  # [N]
    content: NDArray[np.bool_]  # [N, 3]


def judged(panel: Panel, images: NDArray[np.uint8], judge: ContentJudge) -> Outcome:
    captions = panel.captions[: len(images)]
    found = scores(images, [CAPTIONS[c] for c in captions])
    reward = panel.tastes[: len(images)].reward(found)
    return Outcome(images, found, reward, content_right(judge, images, captions))


def bayes_mean(panel: Panel, pairs: int, samples: int = 20_000, seed: int = 7) -> Tastes:
    """Posterior mean tastes from the first ``pairs`` choices: what an ideal reader could learn."""
    prior = Prior.of(samples, seed)
    scores, first = panel.pool.scores, np.s_[:, :pairs]
    chosen = scores[panel.preferred[first]], scores[panel.rejected[first]]
    parts = range(0, len(panel), 64)  # [64, pairs, samples] at once
    posterior = (prior.posterior(*(c[k : k + 64] for c in chosen)) for k in parts)
    return prior.mean(np.concatenate(list(posterior)))


def diversity_kept(panel: Panel, base: Outcome, personal: Outcome) -> float | None:
    """Spread of the personal pictures over the base's, on axes their users do not care about;
    nothing where there are too few users to tell."""
    careless = (np.abs(panel.tastes.weight) + panel.tastes.curvature < 0.05)[: len(base.scores)]
    ratios = [
        personal.scores[careless[:, k], k].std() / base.scores[careless[:, k], k].std()
        for k in range(careless.shape[1])
        if careless[:, k].sum() > 20
    ]
    return float(np.mean(ratios)) if ratios else None
