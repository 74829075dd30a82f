"""What runs in each actor: a room, loaded and warm once its constructor returns.

torch is imported only where it is needed, while the other actors are already up. No Ray here.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppd_serve.api.events import Format, Preview, Queued, Step
from ppd_serve.errors import ReleaseError, Unavailable, Unsupported
from ppd_serve.gateway.ports import DrawEvent, DrawRequest, Finished, IndexRow, Question, Reading
from ppd_serve.preferences.pairs import Pair
from ppd_serve.settings import DiffuserPart, EncoderPart

if TYPE_CHECKING:
    from ppd_serve.diffusion.request import GenerationRequest
    from ppd_serve.diffusion.ticket import Ticket
    from ppd_serve.preferences.questions import Questioner

STUCK_SECONDS = 300.0  # no VLM that anybody waits for reads four pairs for this long
LOOK_SECONDS = 0.5  # how often who waits in the engine's queue is told the place
log = logging.getLogger(__name__)


class Encoder:
    """The VLM. One reading at a time, in its own thread."""

    def __init__(self, release: str, part: EncoderPart) -> None:
        import torch

        from ppd_serve.preferences.encoder import Encoder as Reader
        from ppd_serve.release import load_release

        torch.set_num_threads(part.threads)
        found = load_release(release)
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._reader: Reader = found.load_encoder(
            device=part.device, dtype=part.dtype, quantisation=part.quantisation
        )
        if self._reader.space != found.embedding_space:
            raise ReleaseError(
                f"the encoder's embedding space is {self._reader.space}, "
                f"the release's {found.embedding_space}: embeddings of two spaces never mix"
            )
        self._questioner = found.load_questioner()
        self._moved: float | None = None  # when the reading under way last did
        width, height = found.defaults.sizes[0]
        warm = self._reader.embed([Pair("warm-up", *_two_pictures(width, height))])
        if warm.embedding.shape != found.manifest.embedding_shape:
            raise ReleaseError(
                f"the encoder's embeddings are {warm.embedding.shape}, "
                f"the release's {found.manifest.embedding_shape}"
            )

    async def embed(self, pairs: list[Pair]) -> Reading:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._read, pairs)

    async def ask(self, pairs: list[Pair]) -> Question:
        if self._questioner is None:
            raise Unsupported("This release asks no questions")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._question, self._questioner, pairs)

    def _question(self, questioner: Questioner, pairs: list[Pair]) -> Question:
        found = questioner.next([self._look(questioner, pair) for pair in pairs])
        return Question(found.left, found.right, found.bits)

    def _look(self, questioner: Questioner, pair: Pair) -> np.ndarray:
        """What sets a pair's pictures apart, in the choice model's features."""
        self._moved = time.monotonic()
        try:
            states = [self._reader.look(picture) for picture in (pair.preferred, pair.rejected)]
        finally:
            self._moved = None
        preferred, rejected = questioner.choices.features(np.stack(states))
        return np.asarray(preferred - rejected)

    def _read(self, pairs: list[Pair]) -> Reading:
        """Chunk by chunk (the reader remembers them), so that a person with many pairs is not
        taken for a reader that hangs."""
        from ppd_serve.preferences.encoder import CHUNK

        try:
            for start in range(0, len(pairs), CHUNK):
                self._moved = time.monotonic()
                self._reader.embed(pairs[start : start + CHUNK])
            read = self._reader.embed(pairs)
        finally:
            self._moved = None
        bits = self._question(self._questioner, pairs).bits if self._questioner else None
        return Reading(read.embedding, read.profile, bits)

    async def beat(self) -> None:
        """Warm since its constructor returned."""
        self.check_health()

    def check_health(self) -> None:
        """Ray restarts the actor when this raises."""
        moved = self._moved
        if moved is not None and time.monotonic() - moved > STUCK_SECONDS:
            raise Unavailable("The encoder does not move")


def _two_pictures(width: int, height: int) -> tuple[bytes, bytes]:
    from ppd_serve.diffusion.picture import encode_picture

    plain = np.zeros((height, width, 3), np.uint8)
    return encode_picture(plain), encode_picture(plain + 255)


class UserIndex:
    """Embeddings by id. Its file is a convenience: whatever is wrong with it, the gateway sends
    what is missing."""

    def __init__(
        self, directory: str, space: str, shape: tuple[int, int], save_seconds: float
    ) -> None:
        from ppd_serve.preferences.index import IndexFileError
        from ppd_serve.preferences.index import UserIndex as Index

        self._directory, self._save_seconds = Path(directory), save_seconds
        self._empty: Callable[[], Index] = lambda: Index(space, *shape)
        self._index, self._saved = self._empty(), 0
        try:
            self._index.load(directory)
            self._saved = self._index.sequence
        except IndexFileError:
            pass
        self._writing = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None

    async def apply(self, source: str, after: int, rows: list[IndexRow]) -> int:
        if self._saver is None:
            self._saver = asyncio.create_task(self._keep_saved())
        async with self._writing:
            if after == -1 or source != self._index.source:
                self._index, self._saved = self._empty(), -1
                self._index.source = source
            if after not in (-1, self._index.sequence):
                return self._index.sequence
            for row in rows:
                if row.values is not None:
                    self._put(row.id, row.version, row.values)
                elif self._index.delete(row.id):
                    # Who is deleted is deleted from the file, too, and at once.
                    shutil.rmtree(self._directory, ignore_errors=True)
                self._index.sequence = row.sequence
        return self._index.sequence

    def _put(self, id: str, version: int, values: np.ndarray) -> None:
        try:
            self._index.put(id, version, values)
        except ValueError as error:  # one bad row must not keep all that follow it out
            log.error("%s is left out of the index: %s", id, error)

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        return self._index.get(id)

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        return await asyncio.to_thread(self._index.search, key, k, prefix)

    async def _keep_saved(self) -> None:
        while True:
            await asyncio.sleep(self._save_seconds)
            if self._index.sequence != self._saved:
                try:
                    await self._save()
                except Exception as error:  # a full disk, say: it may have room the next time
                    log.warning("the index was not saved: %r", error)

    async def _save(self) -> None:
        index, sequence = self._index, self._index.sequence
        await asyncio.to_thread(index.save, self._directory)
        if index is self._index:
            self._saved = sequence


class Diffuser:
    """The engine, in its own thread. Pictures are encoded here; bytes travel."""

    def __init__(self, release: str, part: DiffuserPart) -> None:
        import torch

        from ppd_serve.diffusion.engine import Engine
        from ppd_serve.release import load_release

        torch.set_num_threads(part.threads)
        self._release = load_release(release)
        self._release.check()
        backbone = self._release.load_backbone(part.device, getattr(torch, part.dtype))
        shape = self._release.manifest.embedding_shape
        assert shape is not None
        self._engine = Engine(
            backbone,
            self._release.load_adapter(backbone),
            embedding_rows=shape[0],
            max_rows=part.rows,
            queue_limit=part.queue,
        ).start()
        self._engine.submit(self._release.defaults.request("warm-up")).result()

    async def draw(self, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
        """Ray closes this when nobody reads it any more."""
        images = range(len(request.seeds))
        tickets = self._engine.submit_all([self._wanted(request, image) for image in images])
        inbox: asyncio.Queue[DrawEvent | Exception] = asyncio.Queue()
        followers = [
            asyncio.create_task(self._follow(image, ticket, inbox))
            for image, ticket in enumerate(tickets)
        ]
        try:
            yield Queued(place := self._engine.position(tickets[0]))
            unfinished = len(tickets)
            while unfinished:
                event = await _next_of(inbox)
                if place and (now := self._engine.position(tickets[0])) != place:
                    yield Queued(place := now)
                if isinstance(event, Exception):
                    raise event
                unfinished -= isinstance(event, Finished)
                if event is not None and (request.watched or isinstance(event, Finished)):
                    yield event
        finally:
            for ticket in tickets:
                ticket.cancel()  # of no effect on those that are done
            for follower in followers:
                follower.cancel()

    def _wanted(self, request: DrawRequest, image: int) -> GenerationRequest:
        from ppd_serve.diffusion.request import User

        steps = request.steps or self._release.defaults.steps
        return self._release.defaults.request(
            request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seeds[image],
            width=request.width,
            height=request.height,
            steps=steps,
            guidance_scale=request.guidance_scale,
            sampler=request.sampler,
            preference_scale=request.preference_scale,
            users=tuple(User(values, weight) for values, weight in request.users_of(image)),
            preview_every=preview_every(steps, request.previews),
        )

    async def _follow(
        self, image: int, ticket: Ticket, inbox: asyncio.Queue[DrawEvent | Exception]
    ) -> None:
        from ppd_serve.diffusion.picture import encode_picture, parameters

        try:
            async for progress in ticket:
                inbox.put_nowait(Step(image, progress.step, progress.steps))
                if progress.preview is not None and progress.step < progress.steps:
                    png = await asyncio.to_thread(encode_picture, progress.preview)
                    inbox.put_nowait(Preview(image, png))
            result = await ticket
            text = parameters(ticket.request, self._release.name)
            png = await asyncio.to_thread(encode_picture, result.pixels, "png", text)
            inbox.put_nowait(Finished(image, png))
        except Exception as error:
            inbox.put_nowait(error)

    async def encode(self, png: bytes, format: Format) -> bytes:
        return await asyncio.to_thread(_encoded_again, png, format)

    async def samplers(self) -> list[str]:
        return list(self._engine.backbone.samplers)

    async def beat(self) -> None:
        self.check_health()

    def check_health(self) -> None:
        """Ray restarts the actor when this raises."""
        if not self._engine.healthy():
            raise Unavailable("The engine does not move")


def preview_every(steps: int, previews: int) -> int:
    """So many steps from one preview to the next that there are ``previews`` at most, none of
    them after the last step (0: none at all)."""
    return math.ceil(steps / (previews + 1)) if previews else 0


async def _next_of(inbox: asyncio.Queue[DrawEvent | Exception]) -> DrawEvent | Exception | None:
    """None when there is none for a while: time to look at the queue."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await inbox.get()
    except TimeoutError:
        return None


def _encoded_again(png: bytes, format: Format) -> bytes:
    from PIL import Image

    from ppd_serve.diffusion.picture import encode_picture

    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        text = str(image.info.get("parameters", ""))
        return encode_picture(np.asarray(image.convert("RGB")), format, text)
