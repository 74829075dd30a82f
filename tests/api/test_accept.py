"""Which of our types a caller gets."""

from __future__ import annotations

import pytest

from ppd_serve.api.accept import choose
from ppd_serve.errors import NotAcceptable

OFFERS = ["application/json", "image/png", "image/webp", "image/jpeg"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG;q=0.3", "image/png"),
        ("image/*", "image/png"),
        ("image/jpeg;q=0.5, image/webp;q=0.9", "image/webp"),
        ("image/jpeg, image/webp", "image/jpeg"),  # of equals the one named first
        ("image/png, application/json", "image/png"),
        ("image/avif,image/webp,*/*;q=0.8", "image/webp"),  # a browser's <img>
        ("text/html,*/*;q=0.8", "application/json"),  # its address bar
        ("*/*;q=0.1, image/*;q=0.5, image/png;q=0", "image/webp"),  # the most precise range counts
        ("image/png; q = 1 ; x=y", "image/png"),
        ("image/png;q=nonsense", "image/png"),
        ("application/json;q=0, */*", "image/png"),
    ],
)
def test_what_is_liked_best(accept: str, chosen: str) -> None:
    assert choose(accept, OFFERS) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "video/*", "*/*;q=0", "nonsense"])
def test_what_cannot_be_given(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        choose(accept, OFFERS)
    assert caught.value.field == "Accept"
