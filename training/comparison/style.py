"""Diffusion-RPO's experiment: teach one style, and measure how near the pictures come to it.

Painted pictures of one style are preferred over the base's own of the same captions, nobody in
particular prefers them, and each method learns from the same pairs (arXiv 2406.06382). The measure
is Fréchet's distance between the pixel scores of new pictures and those of the painted style; with
eight scores a few hundred pictures are enough, which the features of a network would not be.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppd_serve.release import Release, load_release
from training.autoencoder import to_input
from training.comparison.runs import begin, outcome, trained, write_sheet
from training.data.choice_set import ChoiceSet
from training.data.closeness import unit
from training.data.fingerprint import FROZEN
from training.data.judge import scores
from training.data.studio import caption_text
from training.data.world import AXES, CAPTIONS, TRAIN_CAPTIONS, render
from training.evaluate.alignment import aligned
from training.evaluate.content import PARTS, load_judge
from training.evaluate.run import POOL_SIZE, one
from training.evaluate.studio import Outcome, Panel, panel_of
from training.recipes import recipe
from training.run import Job

# Dark, muted, with bold outlines and dark corners, on no side of what the base draws most.
STYLE = dict(zip(AXES, (0.5, -0.6, -0.6, 0.8, 0.4, -0.6, 0.7, 0.0), strict=True))
_JITTER = 0.15  # a style is a neighbourhood, not a point
METHODS: dict[str, dict[str, Any]] = {
    "sft": {}, "dpo": {}, "kto": {}, "rpo": {"cross_weight": "outside"},
    "rpo-inside": {"cross_weight": "inside"},
}  # fmt: skip
_SEEDS = {"train": 800_000_000, "dev": 810_000_000, "target": 820_000_000}


def painted(captions: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    """Pictures of the style ``[N, 128, 128, 3]``."""
    rng, middle = np.random.default_rng(seed), np.array(list(STYLE.values()))
    styles = middle + _JITTER * rng.standard_normal((len(captions), len(AXES)))
    return np.stack([
        render(CAPTIONS[c], style.clip(-1, 1), seed + k)
        for k, (c, style) in enumerate(zip(captions, styles, strict=True))
    ])  # fmt: skip


def style_choices(
    release: Release, drawn: Outcome, captions: NDArray[np.int64], seed: int
) -> ChoiceSet:
    """Nobody's choices: for every caption the painted style over the base's own picture."""
    count, backbone = len(captions), release.load_backbone()
    pictures = np.concatenate([painted(captions, seed), drawn.images])
    inputs = (to_input(pictures[k : k + 50]) for k in range(0, len(pictures), 50))
    with torch.no_grad():
        latents = torch.cat([backbone.to_latents(part).float().cpu() for part in inputs]).numpy()
    text = {k: v.float().cpu().numpy() for k, v in caption_text(backbone).items()}
    rows, dim = release.manifest.embedding_shape or (1, 1)
    whole = next(iter(text.values()))[:-1].reshape(len(CAPTIONS), -1)
    return ChoiceSet(
        user=np.zeros(count, np.int64), prompt=captions, preferred=np.arange(count),
        rejected=np.arange(count, 2 * count), read_in=np.full(count, -1), latents=latents,
        text=text, readings=np.zeros((1, rows, dim), np.float32),
        reading_user=np.zeros(1, np.int64), reading_pairs=np.ones(1, np.int64),
        prompt_features=unit(whole - whole.mean(0)),
        picture_features=unit(scores(pictures, [CAPTIONS[c] for c in np.tile(captions, 2)])),
    )  # fmt: skip


def compare_style(
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
    """``pictures`` of every method against the style; learned from as many pairs."""
    release, judge = load_release(release_path), load_judge()
    begin(out, "style", release, split=split, pictures=pictures, pool=pool_size)
    panel = panel_of(work, split, pictures, pool_size)
    for part, count in (("train", pictures), ("dev", max(8, pictures // 8))):
        if not (out / "choices" / part / "about.json").exists():
            asked = _asked(panel, count, _SEEDS[part])
            drawn = outcome(f"rejected-{part}", out, release, asked, judge, shown=count)
            made = style_choices(release, drawn, asked.captions, _SEEDS[part])
            made.save(out / "choices" / part)
    target = painted(np.tile(panel.captions, 2), _SEEDS["target"])
    wanted = scores(target, [CAPTIONS[c] for c in np.tile(panel.captions, 2)])
    found = {"base": outcome("base", out, release, panel, judge)}
    shape = release.manifest.embedding_shape or (1, 1)
    everybody = one(np.ones((pictures, *shape), np.float32))
    for name, changes in METHODS.items():
        how = recipe(f"studio-{name.split('-')[0]}", steps=steps, seed=seed, bf16=bf16, **changes)
        job = Job(how, str(out / "choices"), release_path, out / name, work)
        found[name] = outcome(
            "panel", job.out, release, panel, judge, adapter=trained(job), users=everybody
        )
    write_sheet(out, found, [str(CAPTIONS[c]) for c in panel.captions])
    return {
        "release": f"{release.name} {release.version}", "world": FROZEN, "split": split,
        "pictures": pictures, "steps": steps, "seed": seed, "style": STYLE,
        "alignment": {name: asdict(aligned(f.scores, wanted)) for name, f in found.items()},
        "subject_right": {
            name: float(f.content[:, PARTS.index("subject")].mean()) for name, f in found.items()
        },
    }  # fmt: skip


def _asked(panel: Panel, count: int, seed: int) -> Panel:
    """``count`` training captions for nobody in particular."""
    captions = np.array([CAPTIONS.index(c) for c in TRAIN_CAPTIONS])
    some = panel[np.arange(count) % len(panel)]
    drawn = np.random.default_rng(seed).choice(captions, count)
    return replace(some, captions=drawn, seeds=seed + np.arange(count))


def style_markdown(report: dict[str, Any]) -> str:
    """The experiment as a page."""
    lines = [
        "# One style for everybody",
        "",
        f"{report['release']}, world `{report['world']}`: {report['pictures']} pairs in which a "
        f"painted style wins over the base's own picture, {report['steps']} steps of every method, "
        f"{report['pictures']} new pictures of held-out captions. Fréchet's distance between their "
        "pixel scores and the painted style's, with 95 % intervals over pictures; no set can be "
        "expected below the floor, which is what painted pictures score against each other.",
        "",
        "| method | distance | floor | subject right |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['distance']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | "
        f"{row['floor']:.2f} | "
        f"{100 * report['subject_right'][name]:.1f} % |"
        for name, row in report["alignment"].items()
    ]
    return "\n".join(lines) + "\n"
