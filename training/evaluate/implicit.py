"""How often a policy's implicit reward agrees with choices it was not trained on.

The implicit reward of Diffusion-DPO (arXiv 2311.12908) is an expectation over timestep and noise:
one draw of them is what the loss sees, the mean of several is nearer to what the policy believes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from training.evaluate.statistics import Rate, wilson
from training.train import PreferenceTraining

_FIRST_STEP = 1 << 40  # beyond any training's draws


@torch.no_grad()
def implicit_accuracy(run: PreferenceTraining, *, pairs: int, draws: int = 1) -> Rate:
    """Over the first ``pairs`` held-out choices of ``run.choices``: whole batches, or less than
    one."""
    batch, right = min(run.recipe.batch, pairs), 0
    batches = pairs // batch
    for number in range(batches):
        samples = run.samples(_FIRST_STEP + number, range(batch))
        margin = torch.zeros(batch)
        for draw in range(draws):
            other = run.samples(_FIRST_STEP + number + batches * draw, range(batch))
            drawn = replace(samples, t=other.t, noise=other.noise)
            with run.conditioned(drawn):
                errors = run.errors(drawn)
            m_w, m_l, r_w, r_l = (*errors.m.unbind(1), *errors.r.unbind(1))
            margin -= ((m_w - m_l) - (r_w - r_l)).cpu().float()
        right += int((margin > 0).sum())
    return wilson(right, batch * batches)
