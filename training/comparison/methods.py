"""Every method without users and with them: same steps, batch and parameters, several seeds.

A run differs from another in its objective, in what the branch is fed (one learned constant, or the
user) and in its seed. Pictures are drawn for new people and held-out captions, one each, at the
base's prompts and seeds; what is reported pools the training seeds and draws whole people again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppd_serve.preferences.encoder import CHUNK
from ppd_serve.release import Release, load_release
from training.comparison.runs import begin, outcome, trained, write_sheet
from training.data.fingerprint import FROZEN
from training.data.world import CAPTIONS
from training.evaluate.adherence import content_table
from training.evaluate.content import load_judge
from training.evaluate.run import POOL_SIZE, one
from training.evaluate.statistics import (
    Difference,
    bootstrap_mean,
    clustered_rate,
    paired_difference,
    win_rate,
)
from training.evaluate.studio import (
    Array,
    Outcome,
    Panel,
    diversity_kept,
    embeddings,
    panel_of,
    reading_encoder,
)
from training.policy import Conditioning
from training.recipes import recipe
from training.run import STUDIO, Job

METHODS = ("sft", "dpo", "sdpo", "kto", "rpo")
CONDITIONINGS: tuple[Conditioning, ...] = ("none", "user")
PPD = "dpo-user"


@dataclass(frozen=True)
class Arm:
    method: str
    conditioning: Conditioning

    def __str__(self) -> str:
        return f"{self.method}-{self.conditioning}"

    def job(
        self, seed: int, steps: int, release: Path, out: Path, work: Path, *, bf16: bool
    ) -> Job:
        how = recipe(
            f"studio-{self.method}", None, self.conditioning, steps=steps, seed=seed, bf16=bf16
        )
        return Job(how, STUDIO, release, out / f"{self}-{seed}", work)


ARMS = tuple(Arm(method, c) for c in CONDITIONINGS for method in METHODS)


def compare_methods(
    release_path: Path,
    out: Path,
    work: Path,
    *,
    split: str,
    users: int,
    seeds: int,
    steps: int,
    bf16: bool = False,
    arms: tuple[Arm, ...] = ARMS,
    pool_size: int = POOL_SIZE,
) -> dict[str, Any]:
    """Train and draw what is not in ``out`` yet; the figures of all of it."""
    release, judge = load_release(release_path), load_judge()
    begin(out, "methods", release, split=split, users=users, pool=pool_size)
    panel = panel_of(work, split, users, pool_size)
    read = _read(release, panel, out)
    base = outcome("base", out, release, panel, judge)
    drawn: dict[str, list[Outcome]] = {str(arm): [] for arm in arms}
    recipes: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):  # so that an unfinished comparison has all arms of the first seeds
        for arm in arms:
            job = arm.job(seed, steps, release_path, out, work, bf16=bf16)
            recipes[str(arm)] = job.recipe.model_dump(exclude={"seed"})
            shape = release.manifest.embedding_shape or (1, 1)
            fed = read if arm.conditioning == "user" else np.ones((users, *shape), np.float32)
            drawn[str(arm)].append(
                outcome(
                    "panel", job.out, release, panel, judge, adapter=trained(job), users=one(fed)
                )
            )
    first = {name: found[0] for name, found in drawn.items()}  # of the first seed
    write_sheet(out, {"base": base} | first, [str(CAPTIONS[c]) for c in panel.captions])
    return {
        "release": f"{release.name} {release.version}", "world": FROZEN, "split": split,
        "users": users, "seeds": seeds, "steps": steps,
        "arms": {
            name: {"recipe": recipes[name], **_figures(found, base, panel)}
            for name, found in drawn.items()
        },
        "ppd_minus": {
            name: asdict(_lead(drawn[PPD], found, base))
            for name, found in drawn.items() if name != PPD and PPD in drawn
        },
    }  # fmt: skip


def _read(release: Release, panel: Panel, out: Path) -> Array:
    path = out / "embeddings.npy"
    if not path.exists():
        np.save(path, embeddings(reading_encoder(release), panel, CHUNK))
    return np.asarray(np.load(path), np.float32)


def _won(found: Outcome, base: Outcome) -> Array:
    return np.asarray(
        (found.reward > base.reward) + 0.5 * (found.reward == base.reward), np.float32
    )


def _figures(found: list[Outcome], base: Outcome, panel: Panel) -> dict[str, Any]:
    """Pooled over training seeds, people drawn again as a whole; and every seed by itself."""
    users = np.tile(np.arange(len(panel)), len(found))
    gains = np.mean([(f.reward - base.reward) / base.reward.std() for f in found], 0)
    mean, low, high = bootstrap_mean(gains)
    content = np.concatenate([f.content for f in found])
    spread = [diversity_kept(panel, base, f) for f in found]
    return {
        "win_rate": asdict(clustered_rate(np.concatenate([_won(f, base) for f in found]), users)),
        "by_seed": [asdict(win_rate(f.reward, base.reward)) for f in found],
        "gain_in_base_spreads": {"mean": mean, "low": low, "high": high},
        "content": content_table(content, np.concatenate([base.content] * len(found)), users),
        "diversity_kept": None if None in spread else float(np.mean(np.array(spread, float))),
    }


def _lead(ours: list[Outcome], theirs: list[Outcome], base: Outcome) -> Difference:
    users = np.tile(np.arange(len(base.reward)), len(ours))
    a, b = (np.concatenate([_won(f, base) for f in found]) for found in (ours, theirs))
    return paired_difference(a, b, users)


def methods_markdown(report: dict[str, Any]) -> str:
    """The comparison as a page."""

    def percent(r: dict[str, float]) -> str:
        return f"{100 * r['value']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})"

    def points(r: dict[str, float]) -> str:
        return f"{100 * r['value']:+.1f} ({100 * r['low']:+.1f} to {100 * r['high']:+.1f})"

    lines = [
        "# The methods, without users and with them",
        "",
        f"{report['release']}, world `{report['world']}`, {report['users']} {report['split']} "
        f"users on held-out captions, one picture each and run; {report['seeds']} training seeds "
        f"of {report['steps']} steps, equal parameters and batches. Wins over the base at the "
        "same prompt and seed, pooled over the seeds; intervals are bootstrapped over users.",
        "",
        "| method | rate | wins % | of each seed | gain in base spreads | content, points | "
        "diversity | PPD wins more, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["arms"].items():
        gain, kept = row["gain_in_base_spreads"], row["diversity_kept"]
        seeds = ", ".join(f"{100 * s['value']:.1f}" for s in row["by_seed"])
        lead = report["ppd_minus"].get(name)
        lines.append(
            f"| {'**PPD** (dpo-user)' if name == PPD else name} | "
            f"{row['recipe']['learning_rate']:g} | {percent(row['win_rate'])} | "
            f"{seeds} | {gain['mean']:.2f} ({gain['low']:.2f}–{gain['high']:.2f}) | "
            f"{points(row['content']['mean']['difference'])} | "
            f"{'–' if kept is None else f'{100 * kept:.0f} %'} | "
            f"{points(lead) if lead else '–'} |"
        )
    return "\n".join(lines) + "\n"
