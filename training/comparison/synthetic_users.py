"""PPD's synthetic users: one reward each, and what lies between two of them (arXiv 2501.06655).

The paper's three users want more CLIP score, Aesthetic score or HPS; the studio's eight each want
more of one style axis and nothing else. Their embeddings are given, a direction each, so that only
the branch and its objective are asked. One conditioned model has to serve all of them; beside it
stand SFT and DPO of equal size, which nobody tells who asks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppd_serve.release import Release, load_release
from training.comparison.runs import begin, outcome, trained, write_sheet
from training.data.choice_set import ChoiceSet
from training.data.fingerprint import FROZEN
from training.data.pool import PairSampler, load_pool
from training.data.studio import PICTURES, studio_set
from training.data.users import Tastes
from training.data.world import AXES
from training.evaluate.content import load_judge
from training.evaluate.interpolation import blends, interpolation
from training.evaluate.run import POOL_SIZE, one
from training.evaluate.statistics import bootstrap_mean, clustered_mean
from training.evaluate.studio import Array, Outcome, Panel, panel_of
from training.recipes import recipe
from training.run import Job

ARMS = {"sft": ("sft", "none"), "dpo": ("dpo", "none"), "ppd": ("dpo", "user")}
_PAIRS = {"train": 2_000, "dev": 100}  # of each user
_LENGTH = 2.0  # of an embedding, about that of the default's own
_SEED, _BLENDS = 17, 700_000_000


def one_reward_each(copies: int = 1) -> Tastes:
    """Eight people, ``copies`` times in turn: each wants more of one axis, in the order of AXES."""
    weight = np.tile(np.eye(len(AXES), dtype=np.float32), (copies, 1))
    return Tastes(weight, np.zeros_like(weight), np.zeros_like(weight))


def their_embeddings(release: Release) -> Array:
    """``[8, rows, dim]``: a direction each. ValueError if the release has too few dimensions."""
    rows, dim = release.manifest.embedding_shape or (1, 0)
    if rows * dim < len(AXES):
        raise ValueError(f"release: {rows}x{dim} embeddings cannot tell {len(AXES)} users apart")
    return _LENGTH * np.eye(len(AXES), rows * dim, dtype=np.float32).reshape(-1, rows, dim)


def their_choices(release: Release, work: Path, split: str) -> ChoiceSet:
    """Choices of the eight over the studio's pool, whose latents and text states it shares."""
    pool = load_pool(work / "pool", split, PICTURES[split])
    tastes, each = one_reward_each(), _PAIRS[split]
    preferred, rejected = PairSampler(pool).draw(tastes, each, np.random.default_rng(_SEED))
    return replace(
        studio_set(release, work, split),
        user=np.repeat(np.arange(len(tastes)), each), prompt=pool.captions[preferred].reshape(-1),
        preferred=preferred.reshape(-1), rejected=rejected.reshape(-1),
        read_in=np.full(preferred.size, -1), readings=their_embeddings(release),
        reading_user=np.arange(len(tastes)), reading_pairs=np.ones(len(tastes), np.int64),
        known=None, weight=None,
    )  # fmt: skip


def compare_synthetic_users(
    release_path: Path,
    out: Path,
    work: Path,
    *,
    split: str,
    pictures: int,
    steps: int,
    seed: int = 0,
    bf16: bool = False,
    pool_size: int = POOL_SIZE,
) -> dict[str, Any]:
    """``pictures`` for each of the eight, with every method, and between four pairs of them."""
    release, judge = load_release(release_path), load_judge()
    begin(out, "synthetic-users", release, split=split, pictures=pictures, pool=pool_size)
    data = out / "choices"
    for part in _PAIRS:
        if not (data / part / "about.json").exists():
            their_choices(release, work, part).save(data / part)
    tastes = one_reward_each(pictures)
    panel = replace(panel_of(work, split, len(tastes), pool_size), tastes=tastes)
    own, constant = their_embeddings(release), np.ones_like(their_embeddings(release))
    base = outcome("base", out, release, panel, judge)
    found, between, shown = {}, {}, {"base": base}
    for name, (objective, conditioning) in ARMS.items():
        how = recipe(f"studio-{name}", steps=steps, seed=seed, bf16=bf16, known_until=None)
        assert (how.objective, how.conditioning) == (objective, conditioning)
        job = Job(how, str(data), release_path, out / name, work)
        fed, adapter = own if conditioning == "user" else constant, trained(job)
        users = one(np.tile(fed, (pictures, 1, 1)))
        drawn = outcome("panel", job.out, release, panel, judge, adapter=adapter, users=users)
        found[name], shown[name] = gains(drawn, base, panel), drawn
        if conditioning == "user":
            wanted = blends(panel[: len(AXES)], fed, len(AXES) // 2, _BLENDS)
            middle = outcome("between", job.out, release, wanted.panel, judge, adapter=adapter,
                             users=wanted.users)  # fmt: skip
            others = panel.tastes[wanted.second].reward(middle.scores)
            between = interpolation(wanted, middle.reward, others)
    write_sheet(out, shown, [f"more {axis}" for axis in AXES])  # the panel begins with each user
    return {
        "release": f"{release.name} {release.version}", "world": FROZEN, "split": split,
        "pictures": pictures, "steps": steps, "seed": seed, "gains": found, "between": between,
    }  # fmt: skip


def gains(drawn: Outcome, base: Outcome, panel: Panel) -> dict[str, Any]:
    """How far each user's own reward rose over the base's pictures, in the world's deviations.

    A user's interval is over pictures, that of all of them over users: others might want others.
    """
    wants = panel.tastes.weight.argmax(1)
    rise = drawn.reward - base.reward

    def told(found: tuple[float, float, float]) -> dict[str, float]:
        return dict(zip(("mean", "low", "high"), found, strict=True))

    own = {axis: told(bootstrap_mean(rise[wants == k])) for k, axis in enumerate(AXES)}
    return own | {"all": told(clustered_mean(rise, wants))}


def synthetic_markdown(report: dict[str, Any]) -> str:
    """The experiment as a page."""
    names, between = report["gains"], report["between"]
    lines = [
        "# Synthetic users: one reward each",
        "",
        f"{report['release']}, world `{report['world']}`, {report['pictures']} pictures of "
        f"held-out captions for each user, {report['steps']} steps of every method. What the "
        "user's one reward gains over the base's picture, in the world's deviations, with 95 % "
        "intervals.",
        "",
        f"| user wants more | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for axis in (*AXES, "all"):
        cells = (f"{r[axis]['mean']:+.2f} ({r[axis]['low']:+.2f} to {r[axis]['high']:+.2f})"
                 for r in names.values())  # fmt: skip
        lines.append(f"| {axis} | {' | '.join(cells)} |")
    one_way = ", ".join(f"{r:+.2f}" for r in between["mean_reward"])
    other = ", ".join(f"{r:+.2f}" for r in between["mean_reward_of_the_other"])
    lines += [
        "",
        f"Between two of them ({between['pairs']} pairs, {between['pictures_a_point']} pictures a "
        f"point), with shares {', '.join(f'{s:g}' for s in between['shares'])} of the first: the "
        f"first's reward {one_way}; the second's {other}. Median rank correlation of a pair's "
        f"curve with the share {between['spearman'][0]:.2f} (quartiles "
        f"{between['spearman'][1]:.2f}, {between['spearman'][2]:.2f}).",
    ]
    return "\n".join(lines) + "\n"
