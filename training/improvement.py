"""The objective's own measure of a policy: how far its loss lies below the base's, with
an interval over people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from training.data.choice_set import Index
from training.evaluate.statistics import clustered_mean
from training.stage import Metrics
from training.train import Errors, PreferenceTraining


@dataclass(frozen=True)
class Improvement:
    """Of ``N`` samples: the base's terms of the loss minus the policy's, ``gain`` ``[N]``, whose
    ``user`` ``[N]`` and from which ``batch`` ``[N]`` they are. ``shares``: a batch's samples are
    not independent. ``right`` ``[N]``: whether the policy's implicit reward sides with the choice
    (None: the objective has none). ``stats`` are the policy's, on average."""

    gain: NDArray[np.float64]
    user: Index
    batch: Index
    shares: bool
    right: NDArray[np.bool_] | None
    stats: Metrics

    @property
    def people(self) -> int:
        return len(np.unique(self.user))

    def interval(self) -> dict[str, float | None]:
        """What to expect of other people: the mean gain, and where it lies if others had been
        held out. Of one person alone nobody can say."""
        return self._over_people(self.gain)

    def accuracy(self) -> dict[str, float | None] | None:
        """Likewise, how often the implicit reward sides with a person's choice."""
        return None if self.right is None else self._over_people(self.right)

    def _over_people(self, values: ArrayLike) -> dict[str, float | None]:
        batch = self.batch if self.shares else None
        mean, low, high = clustered_mean(values, self.user, batch)
        if self.people < 2:
            return {"mean": mean, "low": None, "high": None}
        return {"mean": mean, "low": low, "high": high}


def improvement(run: PreferenceTraining, batches: int, *, first_step: int = 1 << 30) -> Improvement:
    """The objective on ``batches`` batches without learning, against the base's on the same draws:
    above zero is better. Steps beyond any training keep the draws apart from it.

    A cross pair (RPO) counts for the user of its row, the winner's.
    """
    gains, users, right, stats = [], [], [], []
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
            gains.append((theirs.terms - ours.terms).double().cpu().numpy())
            users.append(samples.user)
            if ours.right is not None:
                right.append(ours.right.cpu().numpy())
            stats.append({k: float(v) for k, v in ours.stats.items()})
    return Improvement(
        gain=np.concatenate(gains),
        user=np.concatenate(users),
        batch=np.repeat(np.arange(batches), run.recipe.batch),
        shares=run.looks_across,
        right=np.concatenate(right) if right else None,
        stats={k: float(np.mean([s[k] for s in stats])) for k in stats[0]},
    )


def _joined(parts: list[Errors]) -> Errors:
    """Of forwards one after another, ``[B, places]`` again."""
    return Errors(
        *(torch.cat([getattr(e, name) for e in parts]) for name in ("m", "r", "loser_scale"))
    )
