"""What training takes from every source: one person's choice between two pictures of one prompt.

A file, a server's database and the studio's people all yield ``Choice``. What is no choice (a tie,
a missing label, a picture that cannot be decoded) is counted by reason and left out, never fatal.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from ppd_serve.preferences.pairs import Pair

MAX_PIXELS = 32_000_000
FORMATS = ("PNG", "JPEG", "WEBP")

Reason = Literal[
    "no user",
    "user of few pairs",
    "more pairs of one user",
    "no prompt",
    "no label",
    "broken label",
    "tie",
    "same picture",
    "no picture",
    "broken picture",
    "too large picture",
    "no score",
    "unreadable file",
]


class NoRows(ValueError):
    """A source of choices is not there, or is no table of them; the message names it."""


class NoChoice(Exception):
    """This row tells of no choice, for this reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Choice:
    """``user`` preferred one picture over another for ``prompt``.

    The pictures are encoded (PNG, JPEG or WebP) and can be decoded to the end. Two ids are equal
    only if the pictures are, so a picture is prepared once however many choices it is in.
    ``scores`` are a scorer's of the preferred and the rejected, where one was asked.
    """

    user: str
    prompt: str
    preferred: bytes = field(repr=False)
    rejected: bytes = field(repr=False)
    preferred_id: str
    rejected_id: str
    scores: tuple[float, float] | None = field(default=None, compare=False)

    @property
    def pair(self) -> Pair:
        """The choice as the encoder reads it."""
        return Pair(self.prompt, self.preferred, self.rejected)


@dataclass
class Skipped:
    """How many choices a stream has yielded, and what it left out: rows (or whole files) by
    reason, users who had too few pairs, and who is in another split than was asked for."""

    kept: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    users: int = 0
    elsewhere: set[str] = field(default_factory=set)

    def drop(self, reason: Reason) -> None:
        """Leave out after all what was counted as kept."""
        self.kept -= 1
        self.reasons[reason] += 1

    def report(self) -> str:
        """One line for people, the commonest reason first."""
        parts = [f"{self.kept:,} choices kept, {self.reasons.total():,} skipped"]
        if self.reasons:
            listed = (f"{reason} {count:,}" for reason, count in self.reasons.most_common())
            parts.append(f" ({', '.join(listed)})")
        if self.users:
            parts.append(f", {self.users:,} users with too few pairs")
        if self.elsewhere:
            count = len(self.elsewhere)
            where = "user is in another split" if count == 1 else "users are in other splits"
            parts.append(f"; {count:,} {where}")
        return "".join(parts)


def choice_of(row: Mapping[str, Any]) -> Choice:
    """The choice in a row with Pick-a-Pic's columns, whatever is in them.

    ``has_label``, ``are_different``, ``label_1`` and the picture ids may be absent; a picture
    without an id is known by its bytes. Raises ``NoChoice``.
    """
    user, prompt, zero_won = user_of(row), prompt_of(row), first_won(row)
    zero, one = picture_of(row.get("jpg_0")), picture_of(row.get("jpg_1"))
    zero_id, one_id = (
        picture_id(row.get("image_0_uid"), zero),
        picture_id(row.get("image_1_uid"), one),
    )
    if zero_id == one_id or zero == one:
        raise NoChoice("same picture")
    if zero_won:
        return Choice(user, prompt, zero, one, zero_id, one_id)
    return Choice(user, prompt, one, zero, one_id, zero_id)


def user_of(row: Mapping[str, Any]) -> str:
    """The person as text: 17, 17.0 and "17" are one. Raises ``NoChoice``."""
    user = row.get("user_id")
    if isinstance(user, float) and user.is_integer():
        user = int(user)
    if isinstance(user, int) and not isinstance(user, bool):
        return str(user)
    return _text(user, "no user")


def prompt_of(row: Mapping[str, Any]) -> str:
    """Raises ``NoChoice`` when there is none, or one that is not UTF-8."""
    return _text(row.get("caption"), "no prompt")


def first_won(row: Mapping[str, Any]) -> bool:
    """Whether picture 0 was preferred over picture 1. Raises ``NoChoice``."""
    if not _is_true(row.get("has_label", True)):
        raise NoChoice("no label")
    if not _is_true(row.get("are_different", True)):
        raise NoChoice("same picture")
    zero = _label(row["label_0"])
    one = _label(row["label_1"]) if "label_1" in row else 1 - zero
    if zero == one:
        raise NoChoice("tie")
    if {zero, one} != {0.0, 1.0}:
        raise NoChoice("broken label")
    return zero == 1


def picture_of(value: object) -> bytes:
    """Encoded bytes, after decoding them once; also from the ``{"bytes", "path"}`` of
    ``datasets.Image(decode=False)``. The header is judged before any pixel. Raises ``NoChoice``."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not data:
        raise NoChoice("no picture")
    if not isinstance(data, bytes):
        raise NoChoice("broken picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our bound is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise NoChoice("too large picture")
                image.load()
    except NoChoice:
        raise
    except Image.DecompressionBombError:
        raise NoChoice("too large picture") from None
    except Exception:  # Pillow's decoders raise nearly anything on broken input
        raise NoChoice("broken picture") from None
    return data


def picture_id(uid: object, data: bytes) -> str:
    """The source's own id, or the SHA-256 of the bytes where it gives none."""
    return uid if isinstance(uid, str) and uid else hashlib.sha256(data).hexdigest()


def _text(value: object, reason: Reason) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise NoChoice(reason) from None
    if not isinstance(text, str) or not text.strip():
        raise NoChoice(reason)
    return text


def _label(value: object) -> float:
    if value is None or value == "":
        raise NoChoice("no label")
    try:
        label = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise NoChoice("broken label") from None
    if math.isnan(label):
        raise NoChoice("no label")
    return label


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "1", "1.0")
