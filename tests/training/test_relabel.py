"""Pairs labelled anew: the higher score wins, whoever won before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image

from ppd_serve.preferences.pair_encoder import open_picture
from tests.training.shards import row
from training.data.choices import Choice, Skipped, choice_of
from training.data.relabel import relabel, scored

CHOICES = [choice_of(row(n, user=n % 3)) for n in range(40)]


def redness(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> list[float]:
    assert len(prompts) == len(pictures)
    return [float(np.asarray(picture)[..., 0].mean()) for picture in pictures]


def red(data_id: str) -> float:
    sides = {c.preferred_id: c.preferred for c in CHOICES}
    sides |= {c.rejected_id: c.rejected for c in CHOICES}
    return redness([""], [open_picture(sides[data_id])])[0]


def test_the_higher_score_wins() -> None:
    skipped = Skipped(kept=40)
    labelled = list(relabel(CHOICES, redness, skipped))
    assert skipped.kept == len(labelled) == 40 and not skipped.reasons
    turned = 0
    for new, old in zip(labelled, CHOICES, strict=True):
        assert (new.user, new.prompt) == (old.user, old.prompt)
        assert red(new.preferred_id) > red(new.rejected_id)
        if new.preferred_id == old.preferred_id:
            assert new == old
        else:
            turned += 1
            sides = (new.rejected, new.preferred, new.rejected_id, new.preferred_id)
            assert sides == (old.preferred, old.rejected, old.preferred_id, old.rejected_id)
        assert new.scores == (red(new.preferred_id), red(new.rejected_id))
    assert 10 < turned < 30
    assert list(relabel(labelled, redness, Skipped())) == labelled


def test_scored_choices_stay_as_they_were() -> None:
    skipped = Skipped(kept=40)
    found = list(scored(CHOICES, redness, skipped))
    assert found == CHOICES and skipped.kept == 40
    assert [c.scores for c in found] == [(red(c.preferred_id), red(c.rejected_id)) for c in CHOICES]


def test_every_picture_is_scored_with_its_own_prompt() -> None:
    asked: list[str] = []

    def second_of_even(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> list[float]:
        asked.extend(prompts)
        numbers = [int(prompt.rpartition(" ")[2]) for prompt in prompts]
        return [float(number % 2 == place % 2) for place, number in enumerate(numbers)]

    labelled = list(relabel(CHOICES, second_of_even, Skipped()))
    assert asked == [c.prompt for c in CHOICES for _ in range(2)]
    kept = [new == old for new, old in zip(labelled, CHOICES, strict=True)]
    assert kept == [number % 2 == 0 for number in range(40)]


def test_ties_and_scores_that_are_no_numbers_are_counted() -> None:
    def scorer(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> np.ndarray:
        scores = np.arange(len(prompts), dtype=np.float32)
        scores[:2], scores[3], scores[4:6] = 5, np.nan, (-np.inf, 0)
        return scores

    skipped = Skipped(kept=4)
    labelled = list(relabel(CHOICES[:4], scorer, skipped))
    assert [c.prompt for c in labelled] == ["a cat, 2", "a cat, 3"]
    assert [c.preferred_id for c in labelled] == ["image-5", "image-7"]
    assert skipped == Skipped(kept=2, reasons=skipped.reasons)
    assert skipped.reasons == {"tie": 1, "no score": 1}


@pytest.mark.parametrize("shape", [(3,), (8, 1), ()])
def test_a_scorer_gives_one_score_for_each_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scorer: 8 pictures"):
        list(relabel(CHOICES[:4], lambda prompts, pictures: np.zeros(shape), Skipped()))


def test_it_takes_only_what_is_asked_for() -> None:
    taken: list[Choice] = []

    def source() -> Iterator[Choice]:
        for choice in CHOICES:
            taken.append(choice)
            yield choice

    next(relabel(source(), redness, Skipped()))
    assert len(taken) < len(CHOICES)
