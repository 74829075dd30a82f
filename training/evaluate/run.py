"""``python -m training evaluate``: draw a studio release under one condition after another.

The panel and its judges are in ``studio.py``, what the pictures say in ``summary.py``, how it is
told in ``report.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.encoder import CHUNK
from ppd_serve.release import Release, load_release
from training.data.audience import taste_features
from training.data.fingerprint import FROZEN
from training.evaluate.adherence import content_table, further_rounds
from training.evaluate.content import load_judge
from training.evaluate.identification import identification
from training.evaluate.interpolation import blends, interpolation
from training.evaluate.statistics import win_rate
from training.evaluate.studio import (
    Array,
    Outcome,
    Panel,
    bayes_mean,
    draw,
    embeddings,
    judged,
    panel_of,
    reading_encoder,
    requests,
)
from training.evaluate.summary import compared, lead, summarise

POOL_SIZE = 2000
SCALES = (0.5, 1.0, 1.5, 2.0, 3.0)  # that are tried before a default is chosen
CONTROLS = "controls.safetensors"  # where a taste known exactly lies in the embedding space
POPULATION = "population.safetensors"  # the adapter trained on one constant for everybody
_AT_ONCE = 512  # pictures that are drawn to be judged and forgotten
_ADHERENCE_SEED, _INTERPOLATION_SEED = 31, 500_000_000

Users = Sequence[Sequence[tuple[Array, float]]]


class StudioReport:
    """Draws the panel under one condition after another and keeps what came out; some conditions
    for its first ``side_users`` alone."""

    def __init__(self, release: Release, panel: Panel, side_users: int = 0) -> None:
        self.release = release
        backbone = release.load_backbone()
        self.engine = Engine(
            backbone, release.load_adapter(backbone), max_rows=16,
            embedding_rows=(release.manifest.embedding_shape or (1, 0))[0],
        ).start()  # fmt: skip
        self.encoder = reading_encoder(release)
        self.judge = load_judge()
        self.panel, self.side = panel, panel[:side_users]
        self.outcomes: dict[str, Outcome] = {}

    def drawn(self, name: str, panel: Panel, users: Users | None, **chosen: float) -> Outcome:
        wanted = requests(panel, self.release.defaults, users, **chosen)
        return judged(panel, draw(self.engine, wanted, name), self.judge)

    def condition(self, name: str, panel: Panel, users: Users | None, **chosen: float) -> None:
        self.outcomes[name] = self.drawn(name, panel, users, **chosen)


def evaluate(
    directory: Path,
    *,
    split: str = "test",
    users: int = 1000,
    side_users: int = 300,
    work: Path = Path("runs/studio"),
    pairs: tuple[int, ...] = (1, 2, 8, 16),
    scales: tuple[float, ...] = (0.5, 2.0, 3.0),
    pool_size: int = POOL_SIZE,
    full: bool = True,
    adherence_pictures: int = 0,
    interpolation_pairs: int = 0,
    against: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Outcome], Panel]:
    """The report's figures, the pictures behind them and who they were drawn for.

    ``adherence_pictures`` of the base and as many personal ones, the panel's own among them, say
    what taste costs in content; 0: the panel's alone. ``against``: another release, that reads the
    same people's choices and draws for them at the same seeds.
    """
    release, panel = load_release(directory), panel_of(work, split, users, pool_size)
    run = StudioReport(release, panel, side_users)
    # Loaded now: what is wrong with it should not be said after an hour.
    other = StudioReport(load_release(against), panel) if against else None
    four = embeddings(run.encoder, run.panel, CHUNK)
    run.condition("base", run.panel, None)
    run.condition("personal", run.panel, one(four))
    run.condition("mismatched", run.panel, one(np.roll(four, 1, axis=0)))
    if full:
        side_conditions(run, four, pairs, scales)
    extra: dict[str, Any] = {"adherence": adherence(run, four, adherence_pictures)}
    if len(run.side) > 1:
        extra["identification"] = asdict(identification(two_readings(run)))
    if interpolation_pairs:
        extra["interpolation"] = between_users(run, four, interpolation_pairs)
    run.engine.stop()
    if other is not None:
        extra["against"] = compared_with(other, run)
    report = {
        "release": {"name": release.name, "version": release.version},
        "embedding_space": release.embedding_space,
        "world": FROZEN,
        "split": split,
    }
    return report | summarise(run.outcomes, run.panel) | extra, run.outcomes, run.panel


def side_conditions(
    run: StudioReport, four: Array, pairs: Sequence[int], scales: Sequence[float]
) -> None:
    """Fewer and more pairs, scales, and the controls, for the first users."""
    side = run.side
    for count in pairs:
        run.condition(f"{count} pairs", side, one(embeddings(run.encoder, side, count)))
    for scale in scales:
        run.condition(f"scale {scale:g}", side, one(four[: len(side)]), preference_scale=scale)
    controls = load_file(run.release.path / "adapter" / CONTROLS)
    as_embedding = controls["taste_to_embedding"]
    if (run.release.path / "adapter" / POPULATION).exists():
        population_condition(run, side)
    for name, tastes in (("true taste", side.tastes), ("Bayes, 4 pairs", bayes_mean(side, 4))):
        run.condition(name, side, one((taste_features(tastes) @ as_embedding)[:, None]))


def population_condition(run: StudioReport, panel: Panel) -> None:
    """The control without users: the same adapter, trained as long, on one constant embedding."""
    backbone = run.release.load_backbone()
    adapter = UserAdapter.load(run.release.path / "adapter" / POPULATION, backbone.denoiser)
    constant = np.ones((1, adapter.embedding_dim), np.float32)
    personal, run.engine = run.engine, Engine(backbone, adapter, max_rows=16).start()
    run.condition("population", panel, one(np.stack([constant] * len(panel))))
    run.engine.stop()
    run.engine = personal


def compared_with(other: StudioReport, run: StudioReport) -> dict[str, Any]:
    """How often the run's personal pictures beat another release's, and how much more often they
    win over the run's own base."""
    panel, personal, base = run.panel, run.outcomes["personal"], run.outcomes["base"]
    four = embeddings(other.encoder, panel, CHUNK)
    drawn = other.drawn("personal, the other release", panel, one(four))
    other.engine.stop()
    return {
        "release": f"{other.release.name} {other.release.version}",
        "beaten": asdict(win_rate(personal.reward, drawn.reward)),
        "minus": lead(personal, drawn, base),
        "content": content_table(personal.content, drawn.content, np.arange(len(panel))),
    }


def adherence(run: StudioReport, four: Array, pictures: int) -> dict[str, Any]:
    """Content of the panel's pictures, base and personal, and of as many more as are wanted."""
    panel = run.panel
    more, users = further_rounds(panel, max(0, pictures - len(panel)), _ADHERENCE_SEED)
    right = {name: [run.outcomes[name].content] for name in ("base", "personal")}
    for start in range(0, len(more), _AT_ONCE):
        part = more[start : start + _AT_ONCE]
        known = one(four[users[start : start + _AT_ONCE]])
        right["base"].append(run.drawn("adherence, base", part, None).content)
        right["personal"].append(run.drawn("adherence, personal", part, known).content)
    ours, base = (np.concatenate(right[name]) for name in ("personal", "base"))
    return content_table(ours, base, np.concatenate([np.arange(len(panel)), users]))


def two_readings(run: StudioReport) -> Array:
    """Of the first users, four pairs and the next four: ``[users, 2, rows, dim]``."""
    every = [run.side.pairs(user, 2 * CHUNK) for user in range(len(run.side))]
    read = run.encoder.embed
    return np.stack(
        [[read(p).embedding for p in (pairs[:CHUNK], pairs[CHUNK:])] for pairs in every]
    )


def between_users(run: StudioReport, four: Array, pairs: int) -> dict[str, Any]:
    wanted = blends(run.panel, four, pairs, _INTERPOLATION_SEED)
    outcome = run.drawn("between two users", wanted.panel, wanted.users)
    others = run.panel.tastes[wanted.second].reward(outcome.scores)
    return interpolation(wanted, outcome.reward, others)


def one(values: Array) -> list[list[tuple[Array, float]]]:
    """A single user at weight 1 for every picture."""
    return [[(value, 1.0)] for value in values]


def sweep_scales(
    directory: Path,
    *,
    users: int = 200,
    work: Path = Path("runs/studio"),
    scales: tuple[float, ...] = SCALES,
    pool_size: int = POOL_SIZE,
) -> dict[str, dict[str, Any]]:
    """Dev users at each ``preference_scale``: what the release's default is chosen by."""
    run = StudioReport(load_release(directory), panel_of(work, "dev", users, pool_size))
    four = embeddings(run.encoder, run.panel, CHUNK)
    run.condition("base", run.panel, None)
    for scale in scales:
        run.condition(f"{scale:g}", run.panel, one(four), preference_scale=scale)
    run.engine.stop()
    base = run.outcomes.pop("base")
    return {name: compared(outcome, base) for name, outcome in run.outcomes.items()}
