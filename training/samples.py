"""Who and what a step learns from, and by which random numbers.

A sample's random numbers are keyed by (seed, step, its index in the effective batch), so neither
the number of processes nor the size of a forward changes it. A user is embedded by a reading that
saw none of the pictures to be learnt, in whatever pair; of whom there is none, nothing is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.choice_set import ChoiceSet, Index, NoChoices
from training.data.likes import LikeSampler, has_reading, liked_pictures
from training.noising import Noising
from training.recipes import Recipe


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


class Sampler:
    """Draws a recipe's samples of a choice set: ``pairs``, or ``likes`` for kto; ``left_out`` of
    them have no reading. NoChoices if nothing is left."""

    def __init__(self, recipe: Recipe, choices: ChoiceSet, noising: Noising) -> None:
        self.recipe, self.choices, self.noising = recipe, choices, noising
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
            self._likes = LikeSampler(self.likes.liked, recipe.liked_share)
        if recipe.objective == "rpo":
            choices.distance(np.zeros(1, np.int64))  # says now what is missing
        self._order: tuple[int, Index] = (-1, np.zeros(0, np.int64))

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
            pair, place = -1, int(self._likes.draw(1, rng)[0])
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
