"""The encoder's actor: pairs to an embedding."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ppd_serve.errors import ReleaseError, Unavailable, Unsupported
from ppd_serve.gateway.ports import Question, Reading
from ppd_serve.logs import LogFormat, configure
from ppd_serve.logs import request_id as caused_by
from ppd_serve.meters import Beat
from ppd_serve.preferences.pairs import Pair
from ppd_serve.settings import EncoderPart

if TYPE_CHECKING:
    from ppd_serve.preferences.questions import Questioner

T = TypeVar("T")
STUCK_SECONDS = 300.0  # no VLM that anybody waits for reads four pairs for this long
log = logging.getLogger(__name__)


class Encoder:
    """The VLM. One reading at a time, in the thread that has loaded it: if a second thread had
    workers of torch's, all of them would sleep between operations (see ``Diffuser``)."""

    def __init__(
        self, release: str, part: EncoderPart, log_format: LogFormat | None = None
    ) -> None:
        import torch

        if log_format is not None:
            configure(log_format)
        torch.set_num_threads(part.threads)
        self._replica = uuid.uuid4().hex[:8]
        self._chunks = 0  # that somebody wanted to be read
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._moved: float | None = None  # when the reading under way last did
        self._lost = False
        self._thread.submit(self._load, release, part).result()

    def _load(self, release: str, part: EncoderPart) -> None:
        from ppd_serve.preferences.encoder import CHUNK
        from ppd_serve.release import load_release

        found = load_release(release)
        self._reader = found.load_encoder(
            device=part.device, dtype=part.dtype, quantisation=part.quantisation
        )
        if self._reader.space != found.embedding_space:
            raise ReleaseError(
                f"the encoder's embedding space is {self._reader.space}, "
                f"the release's {found.embedding_space}: embeddings of two spaces never mix"
            )
        self._questioner = found.load_questioner()
        # Four pairs of the largest size: a model with too few positions for them says so now.
        width, height = max(found.defaults.sizes, key=lambda size: size[0] * size[1])
        warm = self._reader.embed([Pair("warm-up", *_two_pictures(width, height))] * CHUNK)
        if warm.embedding.shape != found.manifest.embedding_shape:
            raise ReleaseError(
                f"the encoder's embeddings are {warm.embedding.shape}, "
                f"the release's {found.manifest.embedding_shape}"
            )

    async def embed(self, pairs: list[Pair], request_id: str = "") -> Reading:
        """``request_id``: for its log lines."""
        return await self._run(request_id, self._read, pairs)

    async def ask(self, pairs: list[Pair], asked: int, request_id: str = "") -> Question:
        if self._questioner is None:
            raise Unsupported("This release asks no questions")
        return await self._run(request_id, self._question, self._questioner, pairs, asked)

    async def _run(self, request_id: str, work: Callable[..., T], *args: Any) -> T:
        """In the reader's thread."""
        caused_by.set(request_id)
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(self._thread, context.run, work, *args)

    def _read(self, pairs: list[Pair]) -> Reading:
        """Chunk by chunk (the reader remembers them), so that a person with many pairs is not
        taken for a reader that hangs."""
        from ppd_serve.preferences.encoder import CHUNK

        with self._moving(pairs):
            for start in range(0, len(pairs), CHUNK):
                self._moved = time.monotonic()
                self._reader.embed(pairs[start : start + CHUNK])
                self._chunks += 1
            read = self._reader.embed(pairs)
        return Reading(read.embedding, read.profile, self._bits(pairs))

    def _bits(self, pairs: list[Pair]) -> float | None:
        """What the next answer would tell. A reading is good without it."""
        if self._questioner is not None:
            with suppress(Exception):  # it is in the log
                return self._question(self._questioner, pairs, 0).bits
        return None

    def _question(self, questioner: Questioner, pairs: list[Pair], asked: int) -> Question:
        with self._moving(pairs):
            return questioner.next([self._difference(questioner, pair) for pair in pairs], asked)

    def _difference(self, questioner: Questioner, pair: Pair) -> np.ndarray:
        self._moved = time.monotonic()
        look = self._reader.look
        return questioner.difference(look(pair.preferred), look(pair.rejected))

    @contextmanager
    def _moving(self, pairs: list[Pair]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            from ppd_serve.device_errors import is_device_lost

            log.exception("%d pairs could not be read", len(pairs))
            self._lost = self._lost or is_device_lost(error)
            raise
        finally:
            self._moved = None

    async def beat(self) -> Beat:
        """Warm since its constructor returned."""
        self.check_health()
        read = self._reader.chunks_read - 1  # but for the warm-up
        return Beat(self._replica, {"chunk_hits": self._chunks - read, "chunk_misses": read})

    def check_health(self) -> None:
        """Ray restarts the actor when this raises."""
        moved = self._moved
        if moved is not None and time.monotonic() - moved > STUCK_SECONDS:
            raise Unavailable("The encoder does not move")
        if self._lost:
            raise Unavailable("The encoder's GPU is lost to this process")


def _two_pictures(width: int, height: int) -> tuple[bytes, bytes]:
    from ppd_serve.diffusion.picture import encode_picture

    plain = np.zeros((height, width, 3), np.uint8)
    return encode_picture(plain), encode_picture(plain + 255)
