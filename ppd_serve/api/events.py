"""What is told of a drawing while it goes on, from the engine's actor to whoever listens.

queued ─► step, preview ─► image (each of them once) ─► done, or error at any point
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

from ppd_serve.api.generation_schemas import UserUsed
from ppd_serve.errors import PPDError

PREVIEWS = 8  # of a picture that somebody may watch
Format = Literal["png", "webp", "jpeg"]


@dataclass(frozen=True)
class Queued:
    """The engine has it; ``position`` pictures are to be taken first, 0: it is being drawn."""

    position: int


@dataclass(frozen=True)
class Step:
    """``step`` of ``steps`` of picture number ``image`` is done."""

    image: int
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """How picture number ``image`` looks so far: a small PNG."""

    image: int
    png: bytes


@dataclass(frozen=True)
class Painted:
    """Picture number ``image`` is finished and kept; ``png`` is None where only its id is known."""

    image: int
    image_id: str
    seed: int
    png: bytes | None = None


@dataclass(frozen=True)
class Drawn:
    """A finished generation, its pictures in order."""

    id: str
    created: int
    release: str
    images: Sequence[Painted]
    users: Sequence[UserUsed]
    timing: dict[str, float]


@dataclass(frozen=True)
class Done:
    drawn: Drawn


@dataclass(frozen=True)
class Failed:
    error: PPDError


Event = Queued | Step | Preview | Painted | Done | Failed


class Entry(NamedTuple):
    """An event under its number; numbers grow, and say where to go on after a break."""

    id: int
    event: Event


class Listener(Protocol):
    """An async iterator over a drawing's entries; close it when you leave."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Entry: ...

    def close(self) -> None: ...
