"""Which pictures were liked, and how often they are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.planted import planted_backbone, planted_choices
from training.data.choice_set import ChoiceSet, NoChoices
from training.data.likes import LIKED_SHARE, LikeSampler, liked_pictures
from training.policy import Conditioning, Policy
from training.recipes import Objective, Recipe
from training.train import PreferenceTraining

# Picture 1 lost against 0 with user 0 and won against 2 with user 1.
USER, PROMPT, PREFERRED, REJECTED = [0, 1, 0], [5, 6, 7], [0, 1, 0], [1, 2, 3]


def test_a_picture_is_liked_if_anyone_preferred_it_once() -> None:
    likes = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, by_user=False)
    assert likes.picture.tolist() == [0, 1, 2, 3]
    assert likes.liked.tolist() == [True, True, False, False]
    # Picture 1 as it was preferred, not as it was first seen.
    assert likes.user.tolist() == [0, 1, 1, 0] and likes.prompt.tolist() == [5, 6, 6, 7]


def test_by_user_only_ones_own_choices_count() -> None:
    likes = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, by_user=True)
    seen = zip(likes.user.tolist(), likes.picture.tolist(), likes.liked.tolist(), strict=True)
    assert list(seen) == [
        (0, 0, True), (0, 1, False), (0, 3, False), (1, 1, True), (1, 2, False)
    ]  # fmt: skip


def test_ones_own_word_stands_over_ones_pairs() -> None:
    # User 0 dislikes what they preferred; 1 likes what nobody compared; 0 dislikes what 1 prefers.
    judged = [[0, 8, 0, 0], [1, 9, 4, 1], [0, 8, 1, 0]]
    own = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, judged, by_user=True)
    told = zip(own.user, own.picture, own.liked, own.prompt, strict=True)
    assert [tuple(map(int, one)) for one in told] == [
        (0, 0, 0, 8), (0, 1, 0, 8), (0, 3, 0, 7), (1, 1, 1, 6), (1, 2, 0, 6), (1, 4, 1, 9),
    ]  # fmt: skip
    of_all = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, judged, by_user=False)
    assert of_all.liked.tolist() == [False, True, False, False, True]
    assert of_all.user.tolist() == [0, 1, 1, 0, 1]


def test_verdicts_can_stand_alone() -> None:
    likes = liked_pictures([], [], [], [], [[0, 1, 2, 1], [0, 1, 3, 0]], by_user=True)
    assert likes.picture.tolist() == [2, 3] and likes.liked.tolist() == [True, False]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=40),
    st.booleans(),
)
def test_the_arrays_say_what_the_definition_says(
    pairs: list[tuple[int, int, int]], by_user: bool
) -> None:
    user, preferred, rejected = np.array(pairs, np.int64).reshape(-1, 3).T
    prompt = np.arange(len(user)) + 100
    likes = liked_pictures(user, prompt, preferred, rejected, by_user=by_user)
    won = {(u if by_user else 0, w) for u, w, _ in pairs}
    seen = won | {(u if by_user else 0, x) for u, _, x in pairs}
    keys = [
        (int(u) if by_user else 0, int(p)) for u, p in zip(likes.user, likes.picture, strict=True)
    ]
    assert sorted(keys) == sorted(seen)
    assert [key in won for key in keys] == likes.liked.tolist()
    pair = likes.prompt - 100  # every pair has a prompt of its own
    side = np.where(likes.liked, preferred[pair], rejected[pair])
    assert (side == likes.picture).all() and (user[pair] == likes.user).all()


def met_again(**changed: np.ndarray) -> ChoiceSet:
    """One person's eight pairs, two readings of four. Picture 0 is in pairs 0 and 1, which the
    first reading saw; picture 1 in pairs 0 and 4, of which either reading saw one."""
    choices = planted_choices(planted_backbone(), people=1, pairs=8)
    pictures = np.arange(16)
    pictures[[2, 8]] = 0, 1
    told = {
        "preferred": pictures[0::2], "rejected": pictures[1::2],
        "readings": np.arange(1, 3, dtype=np.float32)[:, None, None] * np.ones((2, 1, 4)),
        "reading_user": np.zeros(2, np.int64), "reading_pairs": np.full(2, 4),
        "read_in": np.repeat([0, 1], 4),
    }  # fmt: skip
    return dataclasses.replace(choices, **(told | changed))


def trained_with(
    choices: ChoiceSet, objective: Objective, conditioning: Conditioning = "user"
) -> PreferenceTraining:
    how = Recipe(objective=objective, conditioning=conditioning, batch=300, liked_share=0.5)
    policy = Policy(
        planted_backbone(), weights="adapter", conditioning=conditioning,
        embedding_shape=choices.embedding_shape,
    )  # fmt: skip
    return PreferenceTraining(how, choices, policy)


def kto(choices: ChoiceSet) -> PreferenceTraining:
    return trained_with(choices, "kto")


def read_by(run: PreferenceTraining) -> dict[int, set[float]]:
    """The readings (their first number) that were drawn for each picture."""
    samples, found = run.samples(0, range(300)), dict[int, set[float]]()
    for picture, row in zip(samples.pictures[:, 0].tolist(), samples.embedding, strict=True):
        found.setdefault(picture, set()).add(float(row[0, 0]))
    return found


def test_a_picture_is_learnt_by_a_reading_that_saw_it_in_no_pair() -> None:
    run = kto(met_again())
    found = read_by(run)
    assert found.pop(0) == {2.0} and 1 not in found and run.sampler.left_out == 1
    for picture, readings in found.items():
        assert readings == ({2.0} if picture < 8 else {1.0}), picture


def test_a_picture_judged_alone_is_learnt_by_any_reading_and_one_from_a_pair_is_not() -> None:
    judged = np.array([[0, 0, 90, 1], [0, 0, 0, 0]])
    found = read_by(kto(met_again(judged=judged)))
    assert found[90] == {1.0, 2.0} and found[0] == {2.0}


def test_a_picture_is_learnt_by_what_was_read_for_any_pair_that_shows_it() -> None:
    """Of people with one four: each pair is told from others that show none of its pictures."""
    alone = {"reading_user": np.array([0, *[-1] * 4]), "reading_pairs": np.array([4, *[3] * 4])}
    run = kto(met_again(
        **alone, readings=np.arange(1, 6, dtype=np.float32)[:, None, None] * np.ones((5, 1, 4)),
        read_in=np.array([0, 0, 0, 0, *[-1] * 4]), read_for=np.array([1, 2, 3, 4, *[-1] * 4]),
    ))  # fmt: skip
    found = read_by(run)
    assert found[0] == {2.0, 3.0} and found[1] == {2.0} and run.sampler.left_out == 0
    assert found[3] == {3.0} and found[4] == found[5] == {4.0}  # pictures of pairs 1 and 2
    assert found[9] == {1.0}  # of pair 4, which the four is not


@pytest.mark.parametrize("objective", ["sft", "dpo", "rpo"])
def test_a_pair_is_learnt_by_a_reading_that_saw_neither_picture(objective: Objective) -> None:
    """Not even in another pair, whose winner it would know; and never without any."""
    choices = met_again()
    run = trained_with(choices, objective)
    assert run.sampler.left_out == 2  # pairs 0 and 4: both readings saw picture 1
    samples, found = run.samples(0, range(60)), dict[int, set[float]]()
    for pair, told in zip(samples.pair.tolist(), samples.embedding, strict=True):
        found.setdefault(pair, set()).add(float(told[0, 0]))
    assert found == {1: {2.0}, 2: {2.0}, 3: {2.0}, 5: {1.0}, 6: {1.0}, 7: {1.0}}
    aside = trained_with(choices, objective, "none")
    assert aside.sampler.left_out == 0 and len(aside.sampler.pairs) == 8


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "rpo"])
def test_users_of_whom_nothing_was_read_are_refused(objective: Objective) -> None:
    """Noise around nothing would be taken for them: LayerNorm makes it as long as a taste."""
    none = np.zeros(0, np.int64)
    choices = met_again(
        readings=np.zeros((0, 1, 4), np.float32), reading_user=none, reading_pairs=none,
        read_in=np.full(8, -1),
    )  # fmt: skip
    with pytest.raises(NoChoices, match="conditioning: user, but 0 readings leave nothing"):
        trained_with(choices, objective)
    saw_all = met_again(preferred=np.zeros(8, np.int64), rejected=np.ones(8, np.int64))
    with pytest.raises(NoChoices, match="conditioning: user, but 2 readings leave nothing"):
        trained_with(saw_all, objective)


def test_liked_pictures_are_drawn_with_their_share_and_evenly() -> None:
    liked = np.array([False, True, False, True, False])
    drawn = LikeSampler(liked).draw(20_000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=5)
    expected = 20_000 * np.where(liked, LIKED_SHARE / 2, (1 - LIKED_SHARE) / 3)
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    again = LikeSampler(liked).draw(20_000, np.random.default_rng(0))
    assert (again == drawn).all()
    for share in (0.0, 1.0):
        assert set(liked[LikeSampler(liked, share).draw(50, np.random.default_rng(0))]) == {share}


@pytest.mark.parametrize(
    ("liked", "share", "name"),
    [([True], 0.8, "liked"), ([False], 0.8, "liked"), ([], 1.0, "liked"), ([True], 1.1, "share")],
)
def test_what_cannot_be_drawn_is_refused(liked: list[bool], share: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        LikeSampler(liked, share)
