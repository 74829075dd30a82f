"""From pictures to figures: what the conditions say, each against the base at the same seeds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate.adherence import content_table
from training.evaluate.artefacts import Reference, artefact_score
from training.evaluate.content import PARTS
from training.evaluate.statistics import bootstrap_mean, paired_difference, wilson, win_rate
from training.evaluate.studio import Array, Outcome, Panel, diversity_kept

_REAL = 500  # pictures that say what is usual


def summarise(outcomes: dict[str, Outcome], panel: Panel) -> dict[str, Any]:
    """Every condition; ``base``, ``personal`` and ``mismatched`` are of the whole panel, others of
    its first users."""
    base, personal = outcomes["base"], outcomes["personal"]
    others = {name: outcome for name, outcome in outcomes.items() if name != "base"}
    report: dict[str, Any] = {
        "users": len(panel),
        "base_content": {
            part: asdict(wilson(float(base.content[:, k].sum()), len(base.content)))
            for k, part in enumerate(PARTS)
        },
        "conditions": {name: compared(outcome, base) for name, outcome in others.items()},
        "personal_minus": {
            name: lead(personal, outcomes[name], base)
            for name in ("mismatched", "population")
            if name in outcomes
        },
        "personal_beats_mismatched": asdict(
            win_rate(personal.reward, outcomes["mismatched"].reward)
        ),
        "diversity_kept": diversity_kept(panel, base, personal),
        "artefacts": artefacts_told(panel, base, personal),
    }
    if true := outcomes.get("true taste"):
        count = len(true.reward)  # the same users on both sides of the fraction
        gain = (personal.reward[:count] - base.reward[:count]).mean()
        report["share_of_true_taste_gain"] = float(
            gain / (true.reward - base.reward[:count]).mean()
        )
    return report


def compared(ours: Outcome, base: Outcome) -> dict[str, Any]:
    """One condition against the base, which may be longer."""
    count = len(ours.reward)
    mean, low, high = bootstrap_mean((ours.reward - base.reward[:count]) / base.reward.std())
    return {
        "win_rate": asdict(win_rate(ours.reward, base.reward[:count])),
        "gain_in_base_spreads": {"mean": mean, "low": low, "high": high},
        "content": content_table(ours.content, base.content[:count], np.arange(count)),
    }


def lead(ours: Outcome, control: Outcome, base: Outcome) -> dict[str, Any]:
    """Our win rate over the base less the control's, among the control's users: paired."""
    count = len(control.reward)
    won, control_won = (_wins(x.reward[:count], base.reward[:count]) for x in (ours, control))
    return asdict(paired_difference(won, control_won, np.arange(count)))


def _wins(ours: Array, base: Array) -> NDArray[np.float64]:
    return (ours > base) + 0.5 * (ours == base)


def artefacts_told(panel: Panel, base: Outcome, personal: Outcome) -> dict[str, Any]:
    """Mean artefact scores and what taste adds. Tastes go to the edge of what is painted, so real
    pictures judged most like the personal ones are scored beside them."""
    reference = Reference.of(panel.pool.images[:_REAL])
    apart = personal.scores[:, None] - panel.pool.scores  # [N, pool, 8]
    alike = panel.pool.images[np.square(apart).sum(-1).argmin(1)]
    scored = {
        name: artefact_score(images, reference)
        for name, images in (
            ("base", base.images), ("personal", personal.images), ("real_of_like_style", alike)
        )
    }  # fmt: skip
    mean, low, high = bootstrap_mean(scored["personal"] - scored["base"])
    return {name: float(values.mean()) for name, values in scored.items()} | {
        "personal_minus_base": {"mean": mean, "low": low, "high": high}
    }
