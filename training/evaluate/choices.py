"""``python -m training choices``: how well further choices are foreseen from a few of them.

Everybody answers twenty more questions, without noise, about pictures of the same pool. Four ways
to foresee the answers: nobody in particular (one logistic regression over judged scores for all),
the small choice model over the VLM's picture states, the VLM's embedding through a fixed ridge
probe, and Bayes' rule with the world's own prior, noise and scores. The first and the last are the
ends of a scale on which the others are placed.

Readings are of four choices at most and several are averaged, as the encoder does it; Bayes' rule
is chunk-wise from eight choices on, so that only reading is compared and not remembering.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppd_serve.preferences.choice_model import ChoiceModel
from ppd_serve.preferences.encoder import CHUNK, Encoder
from ppd_serve.preferences.transform import BetweenUserTransform
from training import vlm
from training.choice_prior import fit_choice_model
from training.data.audience import Audience, read_people, taste_features
from training.data.bayes import reward_features
from training.data.fingerprint import FROZEN, fingerprint
from training.data.pool import PairSampler, Pool
from training.data.users import KINDS, Tastes, people
from training.data.world import AXES
from training.evaluate.statistics import bootstrap_mean
from training.evaluate.studio import Panel, bayes_mean, new_panel

Array = NDArray[np.floating]

QUESTIONS = 20
COUNTS = (1, 2, 4, 8, 16)
_QUESTION_SEEDS = {"dev": 21_000, "test": 41_000, "confirm": 61_000}
_TRAINING_SEED, _TRAINING_CHOICES = 12, 32
_PRIOR_USERS = 1000  # the choice model has 136 numbers to learn, and a fit of each takes its time


@dataclass(frozen=True)
class Exam:
    """The panel's people, and pairs of which they like the one better: pool indices [N, Q]."""

    panel: Panel
    better: NDArray[np.int64]
    worse: NDArray[np.int64]

    def right(self, believed: Tastes) -> Array:
        """Per person, the share of answers that a believed taste foresees: ``[N]``."""
        scores = self.panel.pool.scores
        return _right(believed.reward(scores[self.better]) - believed.reward(scores[self.worse]))


def new_exam(split: str, users: int, pool: Pool) -> Exam:
    panel = new_panel(split, users, pool)
    rng = np.random.default_rng(_QUESTION_SEEDS[split])
    a, b = PairSampler(pool).draw(panel.tastes, QUESTIONS, rng)
    reward = panel.tastes.reward
    first = reward(pool.scores[a]) > reward(pool.scores[b])
    return Exam(panel, np.where(first, a, b), np.where(first, b, a))


def _right(margins: Array) -> Array:
    """Share of positive margins ``[N, Q]``; where nothing is known, half."""
    return ((margins > 0) + 0.5 * (margins == 0)).mean(1)


def _taste(coefficients: Array) -> Tastes:
    """People whose reward has these coefficients, ``[N, 16]``: linear and quadratic."""
    linear, quadratic = np.split(coefficients.astype(np.float32), 2, axis=1)
    return Tastes(linear, quadratic, np.zeros_like(quadratic))


# --- who foresees -------------------------------------------------------------------------------


def population(preferred: Array, rejected: Array) -> Array:
    """Logistic regression of everybody's choices on their scores ``[M, 8]``: coefficients [16]."""
    differences = reward_features(preferred, rejected)
    size = differences.shape[1]
    wide = ChoiceModel(np.eye(size), np.zeros(size), 100 * np.eye(size))
    return wide.fit(differences).mean


def chunk_wise(read: Callable[[int, int], Array], counts: Sequence[int]) -> dict[int, Array]:
    """What ``read(start, end)`` makes of the first 1, 2, 4, 8, ... choices, chunks averaged."""
    short = {count: read(0, count) for count in counts if count < CHUNK}
    chunks = [read(k, k + CHUNK) for k in range(0, CHUNK * (max(counts) // CHUNK), CHUNK)]
    return short | {n: np.mean(chunks[: n // CHUNK], 0) for n in counts if n >= CHUNK}


def bayes(panel: Panel, counts: Sequence[int]) -> dict[int, Tastes]:
    """Posterior means from the first 1, 2, 4, 8, ... choices."""

    def read(start: int, end: int) -> Array:
        later = {k: getattr(panel, k)[:, start:] for k in ("preferred", "rejected")}
        return taste_features(bayes_mean(replace(panel, **later), end - start))[:, :-1]

    return {count: _taste(mean) for count, mean in chunk_wise(read, counts).items()}


@torch.inference_mode()
def embeddings(
    reader: vlm.Reader, transform: BetweenUserTransform, panel: Panel, counts: Sequence[int]
) -> dict[int, Array]:
    """As ``Encoder.embed`` makes them of the first 1, 2, 4, 8, ... choices: ``[N, rows, dim]``."""

    def read(start: int, end: int) -> Array:
        parts = []
        for k in range(0, len(panel), 64):
            w, x = (p[k : k + 64, start:end] for p in (panel.preferred, panel.rejected))
            parts.append(reader.states(panel.pool.captions[w], w, x)[0].float().cpu().numpy())
        return np.concatenate(parts)

    return {n: transform(state[:, None]) for n, state in chunk_wise(read, counts).items()}


@dataclass(frozen=True)
class Probe:
    """Ridge regression of tastes on embeddings, fixed once for all users and counts."""

    matrix: Array  # [rows·dim + 1, 16]

    @classmethod
    def fit(cls, audience: Audience, transform: BetweenUserTransform, ridge: float = 1.0) -> Probe:
        """On the readings of training users, every one by itself."""
        embedding = audience.embeddings(transform)
        users, readings = embedding.shape[:2]
        x = _with_one(embedding.reshape(users * readings, -1))
        y = np.repeat(taste_features(audience.tastes)[:, :-1], readings, axis=0)
        return cls(np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y))

    def __call__(self, embedding: Array) -> Tastes:
        """``[N, rows, dim]`` -> what the VLM believes of these people."""
        return _taste(_with_one(embedding.reshape(len(embedding), -1)) @ self.matrix)


def _with_one(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)


def choice_model_right(model: ChoiceModel, states: Array, exam: Exam, count: int) -> Array:
    """Of the choice model per person: shares of right answers, from all choices at once and from
    chunks averaged as the encoder does it, and certainty: ``[3, N]``."""
    features, panel = model.features(states), exam.panel
    chosen = features[panel.preferred] - features[panel.rejected]
    asked = features[exam.better] - features[exam.worse]
    means, covariances = model.fit_each(chosen[:, :count])
    averaged = chunk_wise(lambda k, end: model.fit_each(chosen[:, k:end])[0], (count,))[count]
    right = [_right(np.einsum("nqd,nd->nq", asked, mean)) for mean in (means, averaged)]
    return np.stack([*right, model.certainty(covariances)])


# --- the measurement ----------------------------------------------------------------------------


def share_of_the_way(
    ours: Array, start: Array, end: Array, *, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """How far ours is from start to end, each one value per user; 95 % over users drawn again."""
    drawn = np.random.default_rng(seed).integers(len(ours), size=(draws, len(ours)))
    shares = (ours - start)[drawn].sum(1) / (end - start)[drawn].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    value = (ours - start).mean() / (end - start).mean()
    return {"value": float(value), "low": float(low), "high": float(high)}


def measure_choices(
    encoder: Encoder,
    train: Pool,
    held_out: Pool,
    split: str,
    users: int,
    *,
    training_users: int = 2000,
    readings: int = 6,
) -> dict[str, Any]:
    """All figures of a studio encoder. Probe, prior and population see training users only.

    ``held_out``: the split's own pool. Raises ValueError if the studio's fast reader does not take
    the states that the encoder takes.
    """
    if fingerprint() != FROZEN:
        raise SystemExit("the studio world has changed since it was frozen: no figure would count")
    if encoder.config.position != "before_profile" or encoder.config.layers != (-1,):
        raise ValueError("encoder: not read where the profile begins, in the last layer alone")
    if encoder.config.prompt != vlm.STUDIO_PROMPT:
        raise ValueError("encoder: its prompt is not the studio's, which the fast reader says")
    seen = [vlm.cache_features(encoder.model, pool.images) for pool in (train, held_out)]
    trained, new = (vlm.Reader(encoder.model, encoder.processor, f) for f in seen)
    exam = new_exam(split, users, held_out)

    crowd, rng = people("train", training_users), np.random.default_rng(_TRAINING_SEED)
    preferred, rejected = PairSampler(train).draw(crowd, _TRAINING_CHOICES, rng)
    everyone = population(*(train.scores[p].reshape(-1, len(AXES)) for p in (preferred, rejected)))
    states, new_states = (f.flatten(1).float().numpy() for f in seen)
    model = fit_choice_model(states, preferred[:_PRIOR_USERS], rejected[:_PRIOR_USERS])
    probe = Probe.fit(read_people(trained, train, crowd, readings), encoder.transform)

    read = embeddings(new, encoder.transform, exam.panel, COUNTS)
    start = exam.right(_taste(np.tile(everyone, (users, 1))))
    best, counts = bayes(exam.panel, COUNTS), {}
    for count in COUNTS:
        by_vlm, by_bayes = probe(read[count]), best[count]
        ours, end = exam.right(by_vlm), exam.right(by_bayes)
        simple, by_chunks, certainty = choice_model_right(model, new_states, exam, count)
        counts[str(count)] = {
            "vlm": _mean(ours),
            "choice_model": _mean(simple),
            "choice_model_chunk_wise": _mean(by_chunks),
            "bayes": _mean(end),
            "vlm_share": share_of_the_way(ours, start, end),
            "choice_model_share": share_of_the_way(simple, start, end),
            "vlm_minus_choice_model": _mean(ours - simple),
            "vlm_minus_chunk_wise": _mean(ours - by_chunks),
            "certainty": float(certainty.mean()),
            "kinds": _by_kind(exam.panel.tastes, {"population": start, "vlm": ours,
                                                  "choice_model": simple, "bayes": end}),
            "axes": _by_axis(exam.panel.tastes, {"vlm": by_vlm, "bayes": by_bayes}),
        }  # fmt: skip
    return {
        "world": FROZEN, "embedding_space": encoder.space, "split": split, "users": users,
        "training_users": training_users, "questions": QUESTIONS,
        "population": _mean(start), "counts": counts,
    }  # fmt: skip


def _mean(values: Array) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), bootstrap_mean(values), strict=True))


def _by_kind(tastes: Tastes, right: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Shares of right answers of each kind of people."""
    particular = (tastes.curvature > 0).any(1)
    dense = ~particular & (tastes.weight != 0).all(1)
    groups = dict(zip(KINDS, (~particular & ~dense, dense, particular), strict=True))
    return {
        kind: {"users": int(who.sum()), **{k: float(v[who].mean()) for k, v in right.items()}}
        for kind, who in groups.items()
        if who.any()
    }


def _by_axis(tastes: Tastes, believed: dict[str, Tastes]) -> dict[str, dict[str, float]]:
    """Correlation over people of the believed linear coefficient with the true one."""
    true = taste_features(tastes)[:, : len(AXES)]
    return {
        axis: {
            name: float(np.corrcoef(true[:, k], found.weight[:, k])[0, 1])
            for name, found in believed.items()
        }
        for k, axis in enumerate(AXES)
    }


def choices_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""

    def percent(r: dict[str, float]) -> str:
        return f"{100 * r['value']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})"

    columns = ("vlm", "choice_model", "choice_model_chunk_wise", "bayes", "vlm_share",
               "choice_model_share", "vlm_minus_choice_model", "vlm_minus_chunk_wise")  # fmt: skip
    lines = [
        "# Held-out choices",
        "",
        f"World `{report['world']}`, embedding space `{report['embedding_space']}`, split "
        f"`{report['split']}`, {report['users']} users, {report['questions']} noiseless questions "
        "each; percent with 95 % intervals over users. Nobody in particular: "
        f"{percent(report['population'])}.",
        "",
        "| choices | VLM | choice model | chunk-wise | Bayes, chunk-wise | VLM, share of the way "
        "| choice model, share | VLM − choice model | VLM − chunk-wise | certainty |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count, row in report["counts"].items():
        cells = " | ".join(percent(row[column]) for column in columns)
        lines.append(f"| {count} | {cells} | {row['certainty']:.2f} |")
    four = report["counts"][str(CHUNK)]
    lines += ["", "| from 4 choices | users | nobody | VLM | choice model | Bayes |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for kind, row in four["kinds"].items():
        shown = (f"{100 * row[k]:.1f}" for k in ("population", "vlm", "choice_model", "bayes"))
        lines.append(f"| {kind} | {row['users']} | {' | '.join(shown)} |")
    lines += ["", "| from 4 choices, correlation with the true weight | VLM | Bayes |",
              "|---|---|---|"]  # fmt: skip
    lines += [f"| {axis} | {r['vlm']:.2f} | {r['bayes']:.2f} |" for axis, r in four["axes"].items()]
    return "\n".join(lines) + "\n"


def write_choices(report: dict[str, Any], out: Path) -> None:
    """``choices.json`` and ``choices.md`` in the directory ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "choices.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "choices.md").write_text(choices_markdown(report))
