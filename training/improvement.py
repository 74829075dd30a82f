"""The objective's own measure of a policy: how far its loss lies below the base's."""

from __future__ import annotations

import torch

from training.stage import Metrics
from training.train import Errors, PreferenceTraining


def improvements(
    run: PreferenceTraining, batches: int, *, first_step: int = 1 << 30
) -> list[tuple[float, Metrics]]:
    """The objective on ``batches`` batches without learning: ``(improvement, stats)`` of each.

    Improvement is the base's loss minus the policy's on the same draws, so above zero is
    better; steps beyond any training keep the draws apart from it.
    """
    found = []
    with torch.no_grad():
        for step in range(first_step, first_step + batches):
            samples = run.samples(step, range(run.recipe.batch))
            size = run.recipe.micro_batch or len(samples)
            parts = [samples[i : i + size] for i in range(0, len(samples), size)]
            errors = _joined([run.conditioned_errors(part) for part in parts])
            if run.recipe.objective == "sft":
                with run.policy.reference():
                    plain = _joined([run.errors(part) for part in parts])
                base = Errors(plain.m, errors.r, errors.loser_scale)
            else:
                base = Errors(errors.r, errors.r, errors.loser_scale)
            ours, theirs = run.objective(errors, samples), run.objective(base, samples)
            gain = float(theirs.value - ours.value)
            found.append((gain, {k: float(v) for k, v in ours.stats.items()}))
    return found


def _joined(parts: list[Errors]) -> Errors:
    """Of forwards one after another, ``[B, places]`` again."""
    return Errors(
        *(torch.cat([getattr(e, name) for e in parts]) for name in ("m", "r", "loser_scale"))
    )
