"""The three parts, in memory, each able to be slow, to fail and to be looked at."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence

import numpy as np

from ppd_serve.api.events import Format, Preview, Queued, Step
from ppd_serve.gateway.ports import (
    DrawEvent,
    DrawRequest,
    Finished,
    IndexRow,
    Question,
    Reading,
)
from ppd_serve.meters import Beat
from ppd_serve.preferences.index import UserIndex
from ppd_serve.preferences.pairs import Pair
from tests.api.doubles import png

SPACE, ROWS, DIM = "space", 1, 4
STEPS = 3
LEFT, RIGHT = np.full((ROWS, DIM), -1, np.float32), np.full((ROWS, DIM), 1, np.float32)


class FakeEncoder:
    """Reads by hashing, unless it is given the ``values`` that it reads. ``gate`` holds readings
    back until it is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        self.error: Exception | None = None
        self.values: np.ndarray | None = None
        self.bits: float | None = None
        self.read: list[int] = []
        self.asked: list[tuple[int, int]] = []  # pairs, questions since
        self.cancelled = 0

    async def embed(self, pairs: Sequence[Pair]) -> Reading:
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        self.read.append(len(pairs))
        values = embedding(pairs) if self.values is None else self.values
        return Reading(values, f"likes {len(pairs)}", self.bits)

    async def ask(self, pairs: Sequence[Pair], asked: int) -> Question:
        self.asked.append((len(pairs), asked))
        if self.error is not None:
            raise self.error
        return Question(left=LEFT, right=RIGHT, bits=0.25, scale=1.5)

    async def beat(self) -> Beat:
        if self.error is not None:
            raise self.error
        return Beat("encoder", {"chunk_hits": 2, "chunk_misses": len(self.read)})


def embedding(pairs: Sequence[Pair]) -> np.ndarray:
    text = "|".join(pair.prompt for pair in pairs)
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[:DIM], np.uint8).astype(np.float32).reshape(ROWS, DIM) - 127.5


class FakeIndex:
    """A real index behind the port. ``error`` makes it be away; ``restart`` makes it forget."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.restart()

    def restart(self) -> None:
        self.index = UserIndex(SPACE, ROWS, DIM)

    async def apply(self, source: str, after: int, rows: Sequence[IndexRow]) -> int:
        if self.error is not None:
            raise self.error
        if after == -1 or source != self.index.source:
            self.restart()
            self.index.source = source
        if after in (-1, self.index.sequence):
            for row in rows:
                if row.values is None:
                    self.index.delete(row.id)
                else:
                    self.index.put(row.id, row.version, row.values)
                self.index.sequence = row.sequence
        return self.index.sequence

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        if self.error is not None:
            raise self.error
        return self.index.get(id)

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        if self.error is not None:
            raise self.error
        return self.index.search(key, k, prefix)

    async def beat(self) -> Beat:
        if self.error is not None:
            raise self.error
        return Beat("index", {"users": len(self.index)})


class FakeDiffuser:
    """Draws one-coloured pictures in ``STEPS`` steps; remembers what it was asked for. ``gate``
    holds back all that comes after it was taken, ``last`` the finished pictures."""

    def __init__(self) -> None:
        self.gate, self.last = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.last.set()
        self.began = asyncio.Event()
        self.error: Exception | None = None
        self.late_error: Exception | None = None  # after it was taken
        self.asked: list[DrawRequest] = []
        self.place = 1  # in the queue
        self.cancelled = 0

    async def draw(self, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
        self.asked.append(request)
        self.began.set()
        if self.error is not None:
            raise self.error
        try:
            if self.place:
                yield Queued(self.place)
            await self.gate.wait()
            if self.late_error is not None:
                raise self.late_error
            yield Queued(0)
            for event in _events(request):
                if isinstance(event, Finished):
                    await self.last.wait()
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def encode(self, png: bytes, format: Format) -> bytes:
        return f"{format}: ".encode() + png

    async def beat(self) -> Beat:
        if self.error is not None:
            raise self.error
        return Beat("diffuser", {"queued": 3, "steps": 2, "total_rows": 9, "total_seconds": 0.5})

    async def samplers(self) -> list[str]:
        return ["ddim"]


def _events(request: DrawRequest) -> Iterator[DrawEvent]:
    """Each picture's own: the last one first, so that order is nobody's luck. Pictures with users
    of their own differ by them."""
    size = (request.width, request.height)
    if request.watched:
        for step in range(1, STEPS + 1):
            for image in range(len(request.seeds)):
                yield Step(image, step, STEPS)
                if step <= request.previews and step < STEPS:
                    yield Preview(image, f"preview {step} of {image}".encode())
    for image, seed in reversed(list(enumerate(request.seeds))):
        own = request.own_users[image] if request.own_users else []
        tint = sum(int(values.sum()) for values, _ in own)
        yield Finished(image, png(size, f"#{(seed + tint) % 4096:03x}"))
