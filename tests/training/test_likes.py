"""Which pictures were liked, and how often they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.likes import LIKED_SHARE, LikeSampler, liked_pictures

# Picture 1 lost against 0 with user 0 and won against 2 with user 1.
USER, PROMPT, PREFERRED, REJECTED = [0, 1, 0], [5, 6, 7], [0, 1, 0], [1, 2, 3]


def test_a_picture_is_liked_if_anyone_preferred_it_once() -> None:
    likes = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, by_user=False)
    assert likes.picture.tolist() == [0, 1, 2, 3]
    assert likes.liked.tolist() == [True, True, False, False]
    assert likes.pair.tolist() == [0, 1, 1, 2]  # where 1 was preferred, not where it was first seen
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
    told = zip(own.user, own.picture, own.liked, own.prompt, own.pair, strict=True)
    assert [tuple(map(int, one)) for one in told] == [
        (0, 0, 0, 8, 0), (0, 1, 0, 8, 0), (0, 3, 0, 7, 2),
        (1, 1, 1, 6, 1), (1, 2, 0, 6, 1), (1, 4, 1, 9, -1),
    ]  # fmt: skip
    of_all = liked_pictures(USER, PROMPT, PREFERRED, REJECTED, judged, by_user=False)
    assert of_all.liked.tolist() == [False, True, False, False, True]
    assert of_all.user.tolist() == [0, 1, 1, 0, 1] and of_all.pair.tolist() == [0, 1, 1, 2, -1]


def test_verdicts_can_stand_alone() -> None:
    likes = liked_pictures([], [], [], [], [[0, 1, 2, 1], [0, 1, 3, 0]], by_user=True)
    assert likes.picture.tolist() == [2, 3] and likes.pair.tolist() == [-1, -1]


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
    side = np.where(likes.liked, preferred[likes.pair], rejected[likes.pair])
    assert (side == likes.picture).all() and (user[likes.pair] == likes.user).all()
    assert (likes.prompt == prompt[likes.pair]).all()


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
