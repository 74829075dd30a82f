"""``Accept``: what a caller would like to get, in order (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from ppd_serve.errors import NotAcceptable


def choose(accept: str, offers: Sequence[str]) -> str:
    """The media type among ``offers`` that the header likes best; of equals the one it names first,
    then the one we do. Raises ``NotAcceptable`` when it takes none of them."""
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return offers[0]
    liked = [(*_liking(offer, ranges), offer) for offer in offers]
    quality, _, best = max(liked, key=lambda like: like[:2])  # the first of equals
    if quality <= 0:
        raise NotAcceptable("We have " + ", ".join(offers), field="Accept")
    return best


def _range(part: str) -> tuple[str, float]:
    """``"Image/*; q=0.5"`` → ``("image/*", 0.5)``; a quality that can't be read counts as 1."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media, min(max(float(value), 0.0), 1.0)
            except ValueError:
                break
    return media, 1.0


def _liking(offer: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """Quality, and minus the place, of the most precise range that an offer falls into."""
    for wanted in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for place, (media, quality) in enumerate(ranges):
            if media == wanted:
                return quality, -place
    return 0.0, 0
