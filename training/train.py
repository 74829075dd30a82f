"""Every preference objective over every backbone, with users or without.

One step: draw the samples of the effective batch, let policy and reference predict the same noisy
pictures, and hand their errors to the objective. A sample's random numbers are keyed by (seed,
step, its index in the effective batch), and an objective that looks across samples (KTO's reference
point, RPO's cross pairs) sees the errors of the whole batch whoever computed them; so neither the
number of processes nor the size of a forward changes the result.

``m`` is the policy's error, ``r`` the reference's. A picture *place* is one column of the errors: 0
the preferred and 1 the rejected of a pair, 0 alone where the objective looks at single pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import processes
from training.data.choice_set import ChoiceSet, Index, NoChoices
from training.data.likes import LikeSampler, has_reading, liked_pictures
from training.noising import noising_of
from training.objectives import Loss, dpo_loss, kto_loss, rpo_loss, sdpo_scale, sft_loss
from training.policy import Policy
from training.recipes import Recipe
from training.stage import Draws, Metrics, Stage


@dataclass(frozen=True)
class Samples:
    """Some samples of a step: which choices, which of their pictures, and each one's randomness."""

    pair: Index  # [B], -1 for single pictures
    user: Index  # [B], whose choices or likes they are
    pictures: Index  # [B, places]
    liked: Tensor  # [B] bool, for single pictures
    prompt: Index  # [B], -1 empty
    t: Tensor  # [B]
    noise: Tensor  # [B, C, h, w]
    embedding: Tensor  # [B, rows, dim]

    def __len__(self) -> int:
        return len(self.pair)

    def __getitem__(self, rows: slice) -> Samples:
        return Samples(
            self.pair[rows], self.user[rows], self.pictures[rows], self.liked[rows],
            self.prompt[rows], self.t[rows], self.noise[rows], self.embedding[rows],
        )  # fmt: skip


class _Drawn(NamedTuple):
    """One sample: its pair or (kto) its place among the likes, the other is -1, and its random
    numbers."""

    pair: int
    place: int
    empty: bool
    t: float
    noise: NDArray[np.float32]
    embedding: NDArray[np.float32]


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
        by_user = recipe.conditioning == "user"
        self.pairs = np.arange(len(choices))
        kept = np.ones(len(choices), bool)
        if recipe.objective == "kto":
            self.likes = liked_pictures(
                choices.user, choices.prompt, choices.preferred, choices.rejected, choices.judged,
                by_user=by_user,
            )  # fmt: skip
            if by_user:
                kept = has_reading(self.likes, choices)
                self.likes = self.likes[kept]
        elif by_user:
            kept = np.array([len(choices.readings_for_pair(k)) > 0 for k in range(len(choices))])
            self.pairs = np.flatnonzero(kept)
        self.left_out = int((~kept).sum())  # of whose user all readings saw what is to be learnt
        if not kept.any():
            raise NoChoices(f"conditioning: user, but {len(choices.readings)} readings leave "
                            "nothing to learn from: they saw it all, or the release that prepared "
                            "the choices has no encoder")  # fmt: skip
        if recipe.objective == "kto":
            self._sampler = LikeSampler(self.likes.liked, recipe.liked_share)
        if recipe.objective == "rpo":
            choices.distance(np.zeros(1, np.int64))  # says now what is missing
        self._order: tuple[int, Index] = (-1, np.zeros(0, np.int64))

    @property
    def looks_across(self) -> bool:
        return self.recipe.objective in ("kto", "rpo")

    # --- drawing ------------------------------------------------------------------------------

    def pair_of(self, step: int, index: int) -> int:
        """Every pair once an epoch, in an order of its own."""
        epoch, place = divmod(step * self.recipe.batch + index, len(self.pairs))
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.recipe.seed, epoch))
            self._order = epoch, self.pairs[rng.permutation(len(self.pairs))]
        return int(self._order[1][place])

    def samples(self, step: int, indices: range) -> Samples:
        """Those of the effective batch's samples; every process draws the same for an index."""
        recipe, choices = self.recipe, self.choices
        drawn = [self._draw(step, index) for index in indices]
        pairs = np.array([d.pair for d in drawn])
        pictures = np.stack([choices.preferred[pairs], choices.rejected[pairs]], 1)
        if recipe.objective == "dpo" and choices.weight is not None:
            # The loss of a negative weight is that of the other picture's having won, by as much;
            # which one is the loser matters to SDPO.
            pictures = np.where(choices.weight[pairs, None] < 0, pictures[:, ::-1], pictures)
        prompt, liked = choices.prompt[pairs], np.ones(len(drawn), bool)
        user = choices.user[pairs]
        if recipe.objective == "sft":
            pictures = pictures[:, :1]
        elif recipe.objective == "kto":
            places = np.array([d.place for d in drawn])
            pictures, liked = self.likes.picture[places][:, None], self.likes.liked[places]
            prompt, user = self.likes.prompt[places], self.likes.user[places]
        t, noise = [d.t for d in drawn], [d.noise for d in drawn]
        if recipe.objective == "rpo":  # one t and one noise for the batch, so cross pairs compare
            rng = np.random.default_rng((recipe.seed, step, recipe.batch))
            t = [self._timestep(rng)] * len(t)
            noise = [self._noise(rng)] * len(noise)
        return Samples(
            pair=pairs,
            user=user,
            pictures=pictures,
            liked=torch.from_numpy(liked),
            prompt=np.where([d.empty for d in drawn], -1, prompt),
            t=torch.tensor(t),
            noise=torch.from_numpy(np.stack(noise)),
            embedding=torch.from_numpy(np.stack([d.embedding for d in drawn])),
        )

    def _draw(self, step: int, index: int) -> _Drawn:
        recipe, choices = self.recipe, self.choices
        rng = np.random.default_rng((recipe.seed, step, index))
        if recipe.objective == "kto":
            pair, place = -1, int(self._sampler.draw(1, rng)[0])
            user = int(self.likes.user[place])
        else:
            pair, place = self.pair_of(step, index), -1
            user = int(choices.user[pair])
        empty, dropped = rng.random(2) < (recipe.empty_prompts, recipe.dropped_users)
        t, noise = self._timestep(rng), self._noise(rng)
        embedding = np.zeros(choices.embedding_shape, np.float32)
        if recipe.conditioning == "user" and not dropped:
            pooled = int(rng.choice(recipe.pooled_readings))
            if place < 0:
                readings = choices.readings_for_pair(pair)
            else:
                readings = choices.readings_for_picture(user, int(self.likes.picture[place]))
            embedding = choices.embedding(readings, rng, pooled=pooled)
            if choices.known is not None and (share := self.known_share(step)):
                embedding += share * (choices.known[user] - embedding)
            embedding += recipe.embedding_noise * rng.standard_normal(embedding.shape, np.float32)
        return _Drawn(pair, place, bool(empty), t, noise, embedding)

    def known_share(self, step: int) -> float:
        if self.recipe.known_until is None:
            return 0.0
        first, last = (share * self.recipe.steps for share in self.recipe.known_until)
        return min(1.0, max(0.0, (last - step) / (last - first)))

    def _timestep(self, rng: np.random.Generator) -> float:
        return self.noising.draw(rng, self.recipe.first_timestep)

    def _noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        return rng.standard_normal(self.choices.latents.shape[1:], np.float32)

    # --- errors -------------------------------------------------------------------------------

    def errors(self, samples: Samples) -> Errors:
        """Policy and reference on the same noisy pictures; inside ``policy.policy``."""
        backbone, places = self.policy.backbone, samples.pictures.shape[1]

        def of_each_place(x: Tensor) -> Tensor:
            return x.to(backbone.device).repeat_interleave(places, 0)

        pictures = samples.pictures.reshape(-1)
        z = self.choices.latent(pictures).to(backbone.device, backbone.dtype)
        t, noise = of_each_place(samples.t), of_each_place(samples.noise).to(z.dtype)
        noisy, target = self.noising.noisy(z, noise, t), self.noising.target(z, noise, t)
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

    # --- a step -------------------------------------------------------------------------------

    def conditioned(self, samples: Samples) -> AbstractContextManager[None]:
        parameter = next(self.policy.backbone.denoiser.parameters())
        embedding = samples.embedding.to(parameter.device, parameter.dtype)
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


def _plain(loss: Loss) -> Metrics:
    return {"loss": float(loss.value.detach()), **{k: float(v) for k, v in loss.stats.items()}}
