"""``python -m training evaluate``: every figure of a studio release, as JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release, load_release
from training.contact_sheet import Row, grid, stack
from training.data.audience import taste_features
from training.data.fingerprint import FROZEN, fingerprint
from training.data.pool import load_pool
from training.data.world import CAPTIONS
from training.evaluate.content import PARTS, load_judge
from training.evaluate.statistics import bootstrap_mean, wilson, win_rate
from training.evaluate.studio import (
    Array,
    Outcome,
    Panel,
    bayes_mean,
    diversity_kept,
    draw,
    embeddings,
    judged,
    new_panel,
    requests,
)

POOL_SIZE = 2000
CONTROLS = "controls.safetensors"  # where a taste known exactly lies in the embedding space
POPULATION = "population.safetensors"  # the adapter trained on one constant for everybody


class StudioReport:
    """Draws the panel under one condition after another and keeps what came out."""

    def __init__(
        self,
        release: Release,
        split: str,
        users: int,
        side_users: int,
        work: Path,
        pool_size: int = POOL_SIZE,
    ) -> None:
        if fingerprint() != FROZEN:
            raise SystemExit(
                "the studio world has changed since it was frozen: no figure would count"
            )
        self.release = release
        backbone = release.load_backbone()
        self.engine = Engine(
            backbone, release.load_adapter(backbone), max_rows=16,
            embedding_rows=(release.manifest.embedding_shape or (1, 0))[0],
        ).start()  # fmt: skip
        self.encoder = release.load_encoder()
        if self.encoder.config.position == "before_profile":  # the profile changes no embedding
            self.encoder.config = self.encoder.config.model_copy(update={"profile": "skip"})
        self.judge = load_judge()
        pool = load_pool(work / "pool", "dev" if split == "dev" else "test", pool_size)
        self.panel = new_panel(split, users, pool)
        self.side = self.panel.first(min(side_users, users))
        self.outcomes: dict[str, Outcome] = {}

    def condition(
        self,
        name: str,
        panel: Panel,
        users: list[list[tuple[Array, float]]] | None,
        **chosen: float,
    ) -> Outcome:
        wanted = requests(panel, self.release.defaults, users, **chosen)
        self.outcomes[name] = judged(panel, draw(self.engine, wanted, name), self.judge)
        return self.outcomes[name]

    def compare(self, name: str) -> dict[str, Any]:
        """One condition against the base at the same seeds."""
        ours, base = self.outcomes[name], self.outcomes["base"]
        count = len(ours.reward)
        gain = ours.reward - base.reward[:count]
        mean, low, high = bootstrap_mean(gain / base.reward.std())
        return {
            "win_rate": asdict(win_rate(ours.reward, base.reward[:count])),
            "gain_in_base_spreads": {"mean": mean, "low": low, "high": high},
            "content": content_table(ours, base, count),
        }


def content_table(ours: Outcome, base: Outcome, count: int) -> dict[str, Any]:
    right, before = ours.content, base.content[:count]
    return {
        part: {
            "right": asdict(wilson(float(right[:, k].sum()), count)),
            "minus_base": float(right[:, k].mean() - before[:, k].mean()),
        }
        for k, part in enumerate(PARTS)
    }


def population_condition(run: StudioReport, panel: Panel) -> None:
    """The control without users: the same adapter, trained as long, on one constant embedding."""
    backbone = run.release.load_backbone()
    adapter = UserAdapter.load(run.release.path / "adapter" / POPULATION, backbone.denoiser)
    constant = np.ones((1, adapter.embedding_dim), np.float32)
    personal, run.engine = run.engine, Engine(backbone, adapter, max_rows=16).start()
    run.condition("population", panel, one(np.stack([constant] * len(panel))))
    run.engine.stop()
    run.engine = personal


def one(values: Array) -> list[list[tuple[Array, float]]]:
    """A single user at weight 1 for every picture."""
    return [[(value, 1.0)] for value in values]


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
) -> tuple[dict[str, Any], dict[str, Outcome], Panel]:
    """The report's figures, the pictures behind them and who they were drawn for."""
    release = load_release(directory)
    run = StudioReport(release, split, users, side_users, work, pool_size)
    panel, side = run.panel, run.side
    four = embeddings(run.encoder, panel, 4)
    run.condition("base", panel, None)
    run.condition("personal", panel, one(four))
    run.condition("mismatched", panel, one(np.roll(four, 1, axis=0)))
    if full:
        for count in pairs:
            run.condition(f"{count} pairs", side, one(embeddings(run.encoder, side, count)))
        for scale in scales:
            run.condition(f"scale {scale:g}", side, one(four[: len(side)]), preference_scale=scale)
        controls = load_file(release.path / "adapter" / CONTROLS)
        as_embedding = controls["taste_to_embedding"]
        population_condition(run, side)
        true = (taste_features(side.tastes) @ as_embedding)[:, None]
        bayes = (taste_features(bayes_mean(side, 4)) @ as_embedding)[:, None]
        run.condition("true taste", side, one(true))
        run.condition("Bayes, 4 pairs", side, one(bayes))
        other = np.roll(four, 1, axis=0)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            blend = [[(four[i], share), (other[i], 1 - share)] for i in range(len(side))]
            run.condition(f"blend {share:g}", side, blend)
    run.engine.stop()
    return summarise(run, split), run.outcomes, panel


def summarise(run: StudioReport, split: str) -> dict[str, Any]:
    base, personal = run.outcomes["base"], run.outcomes["personal"]
    wrong = run.outcomes["mismatched"]
    beats_wrong = win_rate(personal.reward, wrong.reward)
    everything = {name: run.compare(name) for name in run.outcomes if name != "base"}
    report: dict[str, Any] = {
        "release": {"name": run.release.name, "version": run.release.version},
        "embedding_space": run.release.embedding_space,
        "world": FROZEN,
        "split": split,
        "users": len(run.panel),
        "base_content": {
            part: asdict(wilson(float(base.content[:, k].sum()), len(base.content)))
            for k, part in enumerate(PARTS)
        },
        "conditions": everything,
        "personal_minus_mismatched": everything["personal"]["win_rate"]["value"]
        - everything["mismatched"]["win_rate"]["value"],
        "personal_beats_mismatched": asdict(beats_wrong),
        "diversity_kept": diversity_kept(run.panel, base, personal),
    }
    if "true taste" in everything:
        count = len(run.side)  # the same users on both sides of the fraction
        true = (run.outcomes["true taste"].reward - base.reward[:count]).mean()
        report["share_of_true_taste_gain"] = float(
            (personal.reward[:count] - base.reward[:count]).mean() / true
        )
        report["blends"] = blend_rewards(run)
    return report


def blend_rewards(run: StudioReport) -> list[dict[str, float]]:
    """Mean reward over the base, of the user and of the one they are blended with, by share."""
    base, count = run.outcomes["base"], len(run.side)
    neighbour = run.panel.tastes[np.roll(np.arange(len(run.panel)), 1)][np.arange(count)]
    theirs_before = neighbour.reward(base.scores[:count])
    found = []
    for name, outcome in run.outcomes.items():
        if name.startswith("blend"):
            found.append(
                {
                    "share": float(name.split()[1]),
                    "user": float((outcome.reward - base.reward[:count]).mean()),
                    "other": float((neighbour.reward(outcome.scores) - theirs_before).mean()),
                }
            )
    return found


def sweep_scales(
    directory: Path,
    *,
    users: int = 200,
    work: Path = Path("runs/studio"),
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0),
    pool_size: int = POOL_SIZE,
) -> dict[str, dict[str, Any]]:
    """Dev users at each ``preference_scale``: what the release's default is chosen by."""
    run = StudioReport(load_release(directory), "dev", users, users, work, pool_size)
    four = embeddings(run.encoder, run.panel, 4)
    run.condition("base", run.panel, None)
    for scale in scales:
        run.condition(f"{scale:g}", run.panel, one(four), preference_scale=scale)
    run.engine.stop()
    return {name: run.compare(name) for name in run.outcomes if name != "base"}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""

    def rate(r: dict[str, Any]) -> str:
        return f"{100 * r['value']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})"

    lines = [
        f"# {report['release']['name']} {report['release']['version']}",
        "",
        f"World `{report['world']}`, split `{report['split']}`, {report['users']} users, one "
        "comparison per user against the base at the same prompt and seed. Percentages with 95 % "
        "Wilson intervals; gain in standard deviations of the base's reward.",
        "",
        "| condition | n | win rate % | gain | subject % | setting % | size % |",
        "|---|---|---|---|---|---|---|",
    ]
    base = report["base_content"]
    parts = " | ".join(rate(base[p]) for p in ("subject", "setting", "size"))
    lines.append(f"| base | {base['subject']['count']} | – | – | {parts} |")
    for name, row in report["conditions"].items():
        gain = row["gain_in_base_spreads"]
        parts = " | ".join(
            f"{100 * row['content'][part]['right']['value']:.1f} "
            f"({100 * row['content'][part]['minus_base']:+.1f})"
            for part in ("subject", "setting", "size")
        )
        lines.append(
            f"| {name} | {row['win_rate']['count']} | {rate(row['win_rate'])} | "
            f"{gain['mean']:.2f} ({gain['low']:.2f}–{gain['high']:.2f}) | {parts} |"
        )
    lines += [
        "",
        f"- personal minus mismatched: {100 * report['personal_minus_mismatched']:.1f} points; "
        f"personal beats mismatched in {rate(report['personal_beats_mismatched'])} %",
    ]
    if report["diversity_kept"] is not None:
        lines.append(
            "- diversity kept on axes the user does not care about: "
            f"{100 * report['diversity_kept']:.0f} %"
        )
    if "share_of_true_taste_gain" in report:
        lines += [
            f"- share of the true-taste gain: {100 * report['share_of_true_taste_gain']:.0f} %",
            "- blends, mean reward over the base (user · the other): "
            + ", ".join(
                f"{b['share']:g}: {b['user']:+.2f} · {b['other']:+.2f}" for b in report["blends"]
            ),
        ]
    return "\n".join(lines) + "\n"


def write_report(
    report: dict[str, Any],
    outcomes: dict[str, Outcome],
    panel_captions: NDArray[np.int64],
    out: Path,
) -> None:
    """``report.json``, ``report.md`` and a contact sheet of the first users."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report))
    names = [n for n in ("base", "personal", "mismatched", "true taste") if n in outcomes]
    shown = min(10, *(len(outcomes[name].images) for name in names))  # side conditions are shorter
    rows = [
        Row(
            str(CAPTIONS[panel_captions[user]]),
            [Image.fromarray(outcomes[name].images[user]) for name in names],
        )
        for user in range(shown)
    ]
    stack([grid(names, rows, side=128)]).save(out / "sheet.png")
