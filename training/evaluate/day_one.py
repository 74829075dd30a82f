"""``python -m training judge-day-one``: what an image tower alone makes of choices, beside the VLM.

A new deployment reads choices with CLIP's image tower: preferred pictures less rejected ones
(``ppd_serve.preferences.clip_encoder``), given to an adapter that has learned what pictures are
like. There is no CLIP for the studio's world. What stands for it is the tower of the shipped VLM,
before any words, and for what the adapter has learned one of two linear maps from pictures'
differences to embeddings:

- **without people**: from what pictures drawn with random embeddings look like, as an IP-Adapter
  has learned it from pictures alone. This is day one.
- **with people**: regressed on training people's tastes; how far a tower alone could come.

Both are drawn by the shipped adapter, so only the reading is compared, not the drawing of a public
adapter. Everybody is new, as in ``evaluate``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ppd_serve.preferences.choice_model import ChoiceModel
from ppd_serve.preferences.encoder import Encoder
from ppd_serve.release import load_release
from training import vlm
from training.data.audience import taste_features
from training.data.fingerprint import FROZEN
from training.data.pool import PairSampler, Pool, load_pool
from training.data.users import people
from training.evaluate.run import CONTROLS, POOL_SIZE, StudioReport, one
from training.evaluate.statistics import bootstrap_mean, win_rate
from training.evaluate.studio import embeddings, panel_of
from training.evaluate.summary import compared
from training.questions import measure_response

Array = NDArray[np.floating]

VLM, WITH, WITHOUT = "VLM", "tower, with people", "tower, without people"
DIRECTIONS = 32  # of a picture that are looked at, the widest
_RIDGE = 1.0  # on features of unit variance
_CHOICES_SEED = 17


class Tower:
    """An image tower's states as a few features of unit variance over ``pool``."""

    def __init__(self, encoder: Encoder, pool: Pool, directions: int = DIRECTIONS) -> None:
        self._encoder = encoder
        states = self._states(pool)
        _, width, axes = np.linalg.svd(states - states.mean(0), full_matrices=False)
        most = min(directions, int((width > 1e-6 * width[0]).sum()))
        self.projection = axes[:most].T / (width[:most] / np.sqrt(len(states)))  # [hidden, k]

    def differences(
        self, pool: Pool, preferred: NDArray[np.int64], rejected: NDArray[np.int64]
    ) -> Array:
        """People's choices ``[N, n]`` (indices into ``pool``) -> preferred less rejected [N, k]."""
        features = self._states(pool) @ self.projection
        return (features[preferred] - features[rejected]).mean(1)

    def _states(self, pool: Pool) -> Array:
        """As ``Encoder.look`` gives them."""
        seen = vlm.cache_features(self._encoder.model, pool.images)
        return seen.flatten(1).numpy().astype(np.float64)


def fit_map(differences: Array, known: Array) -> Array:
    """Ridge regression of embeddings ``[N, dim]`` on differences ``[N, k]``: ``[k, dim]``."""
    size = differences.shape[1]
    gram = differences.T @ differences + _RIDGE * np.eye(size)
    return np.linalg.solve(gram, differences.T @ known)


def invert(response: Array) -> Array:
    """From how features move with an embedding ``[dim, k]`` to the embedding that moves them so,
    as near as least squares come: ``[k, dim]``."""
    return np.linalg.pinv(response)


def usual_length(directions: Array) -> NDArray[np.float32]:
    """``[N, dim]`` -> embeddings ``[N, 1, dim]`` as long as embeddings are; zero stays zero."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
    return (unit * np.sqrt(directions.shape[1]))[:, None].astype(np.float32)


def cosines(embeddings: Array, known: Array) -> Array:
    """Per person ``[N]``."""
    a, b = (x.reshape(len(x), -1) for x in (embeddings, known))
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), length, out=np.zeros(len(a)), where=length > 0)


def judge_day_one(
    directory: Path,
    *,
    split: str,
    users: int,
    work: Path,
    counts: Sequence[int] = (4, 16),
    pictures: int = 320,
    train_people: int = 2000,
    train_pool: int = 4000,
    pool_size: int = POOL_SIZE,
) -> dict[str, Any]:
    """``pictures`` are drawn to learn how features answer to embeddings."""
    release = load_release(directory)
    run = StudioReport(release, panel_of(work, split, users, pool_size))
    panel, encoder = run.panel, run.encoder
    as_embedding = load_file(release.path / "adapter" / CONTROLS)["taste_to_embedding"]
    known = taste_features(panel.tastes) @ as_embedding
    seen = load_pool(work / "pool", "train", train_pool)
    tower = Tower(encoder, seen)
    k = tower.projection.shape[1]
    flat = ChoiceModel(tower.projection, np.zeros(k), np.eye(k))  # its features, and no people
    without = invert(measure_response(release, encoder, flat, pictures, None, "cpu")[0])

    crowd, rng = people("train", train_people), np.random.default_rng(_CHOICES_SEED)
    crowd_known = taste_features(crowd) @ as_embedding
    run.condition("base", panel, None)
    base, found = run.outcomes["base"], {}
    for count in counts:
        with_people = fit_map(
            tower.differences(seen, *PairSampler(seen).draw(crowd, count, rng)), crowd_known
        )
        chosen = panel.preferred[:, :count], panel.rejected[:, :count]
        differences = tower.differences(panel.pool, *chosen)
        ways = {
            VLM: embeddings(encoder, panel, count),
            WITH: usual_length(differences @ with_people),
            WITHOUT: usual_length(differences @ without),
        }
        for way, read in ways.items():
            run.condition(f"{way}, {count}", panel, one(read))
        ours = run.outcomes[f"{VLM}, {count}"]
        found[str(count)] = {
            way: {
                "cosine_to_taste": _interval(cosines(read, known)),
                "against_base": compared(outcome := run.outcomes[f"{way}, {count}"], base),
                "against_vlm": asdict(win_rate(outcome.reward, ours.reward)),
            }
            for way, read in ways.items()
        }
    run.engine.stop()
    return {
        "release": f"{release.name} {release.version}", "world": FROZEN, "split": split,
        "users": users, "pictures": pictures, "train_people": train_people, "choices": found,
    }  # fmt: skip


def day_one_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Day one: an image tower alone, beside the VLM",
        "",
        f"Release {report['release']}, world `{report['world']}`, {report['users']} new "
        f"{report['split']} users, one held-out caption each. *Without people*: preferred less "
        f"rejected pictures, and what {report['pictures']} drawn pictures say of embeddings. *With "
        f"people*: the same, and the tastes of {report['train_people']:,} training people.",
        "",
        "| choices | read by | cosine to the taste | liked better than the base's (95 %) "
        "| than the VLM's |",
        "|---|---|---|---|---|",
    ]
    for count, ways in report["choices"].items():
        for way, told in ways.items():
            rate, other = told["against_base"]["win_rate"], told["against_vlm"]
            lines.append(
                f"| {count} | {way} | {told['cosine_to_taste']['value']:.2f} | {_rate(rate)} "
                f"| {'–' if way == VLM else _rate(other)} |"
            )
    return "\n".join(lines) + "\n"


def write_day_one(report: dict[str, Any], out: Path) -> None:
    """``report.json`` and ``report.md`` in the directory ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(day_one_markdown(report))


def _interval(values: Array) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), bootstrap_mean(values), strict=True))


def _rate(rate: dict[str, float]) -> str:
    return f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})"
