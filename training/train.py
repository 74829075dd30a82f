"""Every preference objective over every backbone, with users or without.

One step: draw the samples of the effective batch (``samples``), let policy and reference predict
the same noisy pictures, and hand their errors to the objective. One that looks across samples
(KTO's reference point, RPO's cross pairs) sees the errors of the whole batch whoever computed them;
so neither the number of processes nor the size of a forward changes the result.

``m`` is the policy's error, ``r`` the reference's. A picture *place* is one column of the errors: 0
the preferred and 1 the rejected of a pair, 0 alone where the objective looks at single pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import processes
from training.data.choice_set import ChoiceSet
from training.noising import noising_of
from training.objectives import Loss, dpo_loss, kto_loss, rpo_loss, sdpo_scale, sft_loss
from training.policy import Policy
from training.recipes import Recipe
from training.samples import Sampler, Samples
from training.stage import Draws, Metrics, Stage


@dataclass(frozen=True)
class Errors:
    """``m`` and ``r`` ``[B, places]``; ``loser_scale`` ``[B]`` is SDPO's."""

    m: Tensor
    r: Tensor
    loser_scale: Tensor


class PreferenceTraining:
    """The loss of a recipe over a choice set: ``parts`` is what a ``Stage`` trains on."""

    def __init__(self, recipe: Recipe, choices: ChoiceSet, policy: Policy) -> None:
        self.recipe, self.choices, self.policy = recipe, choices, policy
        self.noising = noising_of(policy.backbone.scheduler_config)
        self.sampler = Sampler(recipe, choices, self.noising)

    @property
    def looks_across(self) -> bool:
        return self.recipe.objective in ("kto", "rpo")

    def samples(self, step: int, indices: range) -> Samples:
        """Those of the effective batch's samples; every process draws the same for an index."""
        return self.sampler.samples(step, indices)

    def errors(self, samples: Samples) -> Errors:
        """Policy and reference on the same noisy pictures; inside ``policy.policy``."""
        backbone, places = self.policy.backbone, samples.pictures.shape[1]

        def of_each_place(x: Tensor) -> Tensor:
            return x.to(backbone.device).repeat_interleave(places, 0)

        # In float32 at least: a halved base's bf16 has no noise level of the first timesteps, and
        # would noise others as some other step is.
        pictures = samples.pictures.reshape(-1)
        z = self.choices.latent(pictures).to(backbone.device, _at_least_float32(backbone.dtype))
        t, noise = of_each_place(samples.t), of_each_place(samples.noise).to(z.dtype)
        noisy, target = self.noising.noisy(z, noise, t), self.noising.target(z, noise, t)
        noisy = noisy.to(backbone.dtype)
        text = {k: of_each_place(s) for k, s in self.choices.states(samples.prompt).items()}

        def error() -> tuple[Tensor, Tensor]:
            predicted = backbone.denoise(noisy, t, text)
            if predicted.dtype != torch.float64:
                predicted = predicted.float()
            off = predicted - target
            return off, off.square().flatten(1).mean(1).view(-1, places)

        if self.recipe.objective == "sft":  # nothing to compare with
            m = error()[1]
            return Errors(m, torch.zeros_like(m), torch.ones_like(m[:, 0]))
        off, m = error()
        with torch.no_grad(), self.policy.reference():
            r = error()[1]
        return Errors(m, r, self._loser_scale(off))

    def _loser_scale(self, off: Tensor) -> Tensor:
        """SDPO's λ of every pair; ``off`` ``[2B, C, h, w]`` is prediction minus target."""
        mu = self.recipe.sdpo_mu
        if mu is None or self.recipe.objective != "dpo":
            return off.new_ones(len(off) // (1 if self.recipe.objective == "kto" else 2))
        nothing = torch.zeros_like(off[0])
        pairs = zip(off[0::2].detach(), off[1::2].detach(), strict=True)
        return off.new_tensor([sdpo_scale(w, x, nothing, nothing, mu=mu) for w, x in pairs])

    def objective(self, errors: Errors, samples: Samples) -> Loss:
        """The recipe's objective over a batch's errors."""
        recipe = self.recipe
        if recipe.objective == "sft":
            return sft_loss(errors.m[:, 0])
        if recipe.objective == "kto":
            return kto_loss(
                errors.m[:, 0], errors.r[:, 0], samples.liked.to(errors.m.device),
                beta=recipe.beta, utility=recipe.utility,
            )  # fmt: skip
        m_w, m_l, r_w, r_l = *errors.m.unbind(1), *errors.r.unbind(1)
        if recipe.objective == "dpo":
            weight = self.choices.weight
            return dpo_loss(
                m_w, m_l, r_w, r_l, beta=recipe.beta, loser_scale=errors.loser_scale,
                pair_weight=None if weight is None else m_w.new_tensor(abs(weight[samples.pair])),
            )  # fmt: skip
        return rpo_loss(
            m_w, m_l, r_w, r_l, self.choices.distance(samples.pair).to(m_w),
            beta=recipe.beta, tau=recipe.tau, weight=recipe.cross_weight,
        )  # fmt: skip

    def conditioned(self, samples: Samples) -> AbstractContextManager[None]:
        parameter = next(self.policy.backbone.denoiser.parameters())
        embedding = samples.embedding.to(parameter.device, _at_least_float32(parameter.dtype))
        return self.policy.policy(embedding.repeat_interleave(samples.pictures.shape[1], 0))

    def parts(self, step: int, _: Draws | None = None) -> Iterator[tuple[Tensor, Metrics]]:
        """The step's loss in pieces of ``micro_batch``, for this process's share of the batch."""
        batch, mine = self.recipe.batch, processes.share(self.recipe.batch)
        samples = self.samples(step, mine)
        size = self.recipe.micro_batch or len(mine)
        pieces = [slice(i, min(i + size, len(mine))) for i in range(0, len(mine), size)]
        known = None
        if self.looks_across and len(pieces) > 1:
            # What one sample's gradient is depends on all errors: look first, without gradients.
            with torch.no_grad():
                known = self._coefficients(step, [self.conditioned_errors(samples[p])
                                                  for p in pieces])  # fmt: skip
            # Before pytorch's pull request 165068 autocast takes weights that it cast without
            # gradients again where they are wanted.
            torch.clear_autocast_cache()
        for piece in pieces:
            part = samples[piece]
            with self.conditioned(part):
                errors = self.errors(part)
                if not self.looks_across:
                    loss = self.objective(errors, part)
                    share = len(part) / batch
                    yield loss.value * share, _plain(loss)
                    continue
                coefficient, metrics = known or self._coefficients(step, [errors])
                yield (coefficient[piece] * errors.m).sum(), metrics

    def conditioned_errors(self, samples: Samples) -> Errors:
        """``errors`` for the samples' users."""
        with self.conditioned(samples):
            return self.errors(samples)

    def _coefficients(self, step: int, mine: list[Errors]) -> tuple[Tensor, Metrics]:
        """∂loss/∂m of this process's samples, ``[share, places]``, from everybody's errors."""
        m = processes.gathered(torch.cat([e.m for e in mine])).requires_grad_()
        r = processes.gathered(torch.cat([e.r for e in mine]))
        everyone = self.samples(step, range(self.recipe.batch))
        with torch.enable_grad():
            loss = self.objective(Errors(m, r, torch.ones_like(m[:, 0])), everyone)
        gradient = torch.autograd.grad(loss.value, m)[0]
        share = processes.share(self.recipe.batch)
        return gradient[share.start : share.stop], _plain(loss)


def stage_of(run: PreferenceTraining, name: str, directory: Path) -> Stage:
    """The run as the loop takes it."""
    how = run.recipe
    if how.gradient_checkpointing:
        denoiser: Any = run.policy.backbone.denoiser
        denoiser.train()  # some of diffusers' denoisers recompute in training mode only
        for module in denoiser.modules():
            if isinstance(module, nn.Dropout):  # policy and reference must see the same
                module.eval()
        denoiser.enable_gradient_checkpointing()
    return Stage(
        name=name, directory=directory, modules=run.policy.modules, loss=run.parts,
        steps=how.steps, learning_rate=how.learning_rate, seed=how.seed, optimizer=how.optimizer,
        weight_decay=how.weight_decay, betas=how.betas, ema_decay=how.ema_decay, clip=how.clip,
        warmup=how.warmup, hold=how.hold, bf16=how.bf16,
    )  # fmt: skip


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _plain(loss: Loss) -> Metrics:
    return {"loss": float(loss.value.detach()), **{k: float(v) for k, v in loss.stats.items()}}
