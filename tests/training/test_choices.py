"""A row is a valid choice or is left out for a reason; there is no third way."""

from __future__ import annotations

import hashlib
import io
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.training.shards import picture, row
from training.data.choices import Choice, NoChoice, Reason, Skipped, choice_of

GOOD = row()


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_the_labelled_side_is_preferred() -> None:
    first = Choice("7", "a cat, 0", GOOD["jpg_0"], GOOD["jpg_1"], "image-0", "image-1")
    assert choice_of(GOOD) == first
    second = choice_of(row(label_0=0.0, label_1=1.0))
    assert (second.preferred, second.rejected_id) == (GOOD["jpg_1"], "image-0")
    assert second.pair.preferred == GOOD["jpg_1"] and second.pair.prompt == "a cat, 0"


@pytest.mark.parametrize(
    "changed",
    [
        {"label_0": "1", "label_1": "0.0"},
        {"label_0": True, "label_1": False},
        {"has_label": "true", "are_different": 1},
        {"caption": b"a cat, 0"},
        {"user_id": "7"},
        {"user_id": 7.0},
        {"jpg_0": {"bytes": GOOD["jpg_0"], "path": None}},
    ],
)
def test_other_types_that_say_the_same_are_read(changed: dict[str, Any]) -> None:
    assert choice_of(GOOD | changed) == choice_of(GOOD)


def test_columns_that_may_be_absent() -> None:
    least = {k: GOOD[k] for k in ("user_id", "caption", "jpg_0", "jpg_1", "label_0")}
    choice = choice_of(least)
    assert choice.preferred == GOOD["jpg_0"]
    assert choice.preferred_id == hashlib.sha256(GOOD["jpg_0"]).hexdigest()


HUGE = encoded(Image.new("1", (8000, 4001)), "PNG")
BOMB = encoded(Image.new("1", (20_000, 10_000)), "PNG")
BROKEN: list[tuple[dict[str, Any], Reason]] = [
    ({"user_id": None}, "no user"),
    ({"user_id": " "}, "no user"),
    ({"user_id": True}, "no user"),
    ({"user_id": float("nan")}, "no user"),
    ({"caption": None}, "no prompt"),
    ({"caption": ""}, "no prompt"),
    ({"caption": b"a \xff"}, "no prompt"),
    ({"caption": 5}, "no prompt"),
    ({"has_label": False}, "no label"),
    ({"has_label": None}, "no label"),
    ({"label_0": None}, "no label"),
    ({"label_1": float("nan")}, "no label"),
    ({"label_0": ""}, "no label"),
    ({"label_0": "good"}, "broken label"),
    ({"label_0": [1.0]}, "broken label"),
    ({"label_0": 0.7, "label_1": 0.3}, "broken label"),
    ({"label_0": float("inf")}, "broken label"),
    ({"label_0": 0.5, "label_1": 0.5}, "tie"),
    ({"label_0": 1.0, "label_1": 1.0}, "tie"),
    ({"are_different": False}, "same picture"),
    ({"image_1_uid": "image-0"}, "same picture"),
    ({"jpg_1": GOOD["jpg_0"]}, "same picture"),
    ({"jpg_0": None}, "no picture"),
    ({"jpg_0": b""}, "no picture"),
    ({"jpg_1": {"bytes": None, "path": "x.jpg"}}, "no picture"),
    ({"jpg_0": "text"}, "broken picture"),
    ({"jpg_0": b"no picture at all"}, "broken picture"),
    ({"jpg_0": GOOD["jpg_0"][:-100]}, "broken picture"),
    ({"jpg_1": picture(1, "PNG")[:-60]}, "broken picture"),
    ({"jpg_1": encoded(Image.new("RGB", (4, 4)), "BMP")}, "broken picture"),
    ({"jpg_0": HUGE}, "too large picture"),
    ({"jpg_0": BOMB}, "too large picture"),
]


@pytest.mark.parametrize(("changed", "reason"), BROKEN)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_what_is_no_choice_says_why(changed: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(NoChoice) as fault:
        choice_of(GOOD | changed)
    assert fault.value.reason == reason


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.binary(max_size=40), st.lists(st.integers(), max_size=2), st.sampled_from([0.0, 1.0]),
    st.integers(0, len(GOOD["jpg_0"])).map(lambda n: GOOD["jpg_0"][:n]),
    st.dictionaries(st.sampled_from(["bytes", "path"]), st.binary(max_size=9), max_size=2),
)  # fmt: skip


@settings(deadline=None)  # the first picture loads Pillow's plugins
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, min_size=1, max_size=4))
def test_no_value_of_any_column_breaks_the_stream(changed: dict[str, Any]) -> None:
    try:
        choice = choice_of(GOOD | changed)
    except NoChoice as fault:
        assert fault.reason in get_args(Reason)
        return
    assert choice.user.strip() and choice.prompt.strip()
    assert choice.preferred_id != choice.rejected_id
    for data in (choice.preferred, choice.rejected):
        assert np.asarray(Image.open(io.BytesIO(data))).shape == (16, 16, 3)


def test_the_report_tells_how_much_and_why() -> None:
    skipped = Skipped(kept=1200)
    assert skipped.report() == "1,200 choices kept, 0 skipped"
    skipped.reasons.update({"tie": 3, "broken picture": 1100})
    skipped.users = 2
    assert skipped.report() == (
        "1,200 choices kept, 1,103 skipped (broken picture 1,100, tie 3), "
        "2 users with too few pairs"
    )
