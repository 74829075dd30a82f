"""API keys: what one is, what it may do, and how it is made and recognised."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "ppd"
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Scope(StrEnum):
    """``read``: every GET. ``write``: everything that changes users, choices and pictures.
    ``generate``: drawing, a question's pictures too, and following and stopping what is drawn.
    ``metrics``: the server's own figures, which are of all projects together."""

    READ = "read"
    WRITE = "write"
    GENERATE = "generate"
    METRICS = "metrics"


EVERYTHING = frozenset(Scope)
OF_A_PROJECT = EVERYTHING - {Scope.METRICS}


@dataclass(frozen=True)
class ApiKey:
    """All that is known of a key, which is not the key itself.

    id: its public name. rate_per_minute: how many calls in any 60 s. concurrency: how much work
    (POST, PUT, and what is drawn on after them) at once. ``None``: as much as comes. created,
    expires, revoked: seconds since the epoch.
    """

    id: str
    project: str
    scopes: frozenset[Scope] = EVERYTHING
    name: str = ""
    rate_per_minute: int | None = None
    concurrency: int | None = None
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def is_live(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key() -> tuple[str, str]:
    """A new id and the key that begins with it: ``ppd_ID_SECRET``, 256 random bits."""
    id = secrets.token_hex(6)
    return id, f"{PREFIX}_{id}_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """What is kept of a key, and what it is looked up by.

    A plain SHA-256: slow hashes slow down guessing, and nobody guesses 256 random bits. The time
    of a look-up tells nothing either: it depends on the digest, which a caller can't steer towards
    that of a key they don't have.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_project(name: str) -> bool:
    """Letters, digits, ``-`` and ``_``, at most 64."""
    return _PROJECT.fullmatch(name) is not None
