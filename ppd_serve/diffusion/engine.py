"""The engine: many pictures denoised together, one step at a time.

Continuous batching at the granularity of a step. At every tick whoever was cancelled leaves, the
queue fills the places that are free, in order of arrival, and one group of rows (equal stage and
latent shape) takes a step in one forward (on a CPU, if it is large, in one for each core,
``lanes.py``), each row by its own schedule; then some of the pictures that are finished are decoded
(``decoding.py``). A row that has finished a stage of several begins the next in its place. Whatever
goes wrong with one row fails that row alone.

The rule of fairness (``turns.py``): every row is owed the same work. Groups take turns by the work
their rows were given, rows within a group by how long they have waited, so neither a size nor a
long job starves another. A place is kept until the last step: a request waits for as many steps as
those ahead of it have left, never for those behind.

Those who come together begin together: an idle engine begins once nobody has come for a moment, as
a batch that grows by one at every step draws fewer pictures in its first and in its last steps.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from ppd_serve.diffusion.admission import check
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.batch import Batch
from ppd_serve.diffusion.request import GenerationRequest, Result
from ppd_serve.diffusion.stats import Stats
from ppd_serve.diffusion.ticket import Ticket
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import (
    Cancelled,
    GenerationFailed,
    Interrupted,
    InvalidInput,
    PPDError,
    QueueFull,
    Unavailable,
)

log = logging.getLogger(__name__)

IDLE_BEAT_S = 1.0
COMPANY_S = 0.015  # for how long after each that comes an idle engine waits for one more …
MOST_COMPANY_S = 0.25  # … and in all


class Engine:
    """Owns the backbone, the adapter and one thread. Everything public may be called anywhere.

    ``max_rows`` pictures are denoised at a time, ``queue_limit`` more may wait; so an idle engine
    takes what it has rows for, whatever the limit. Embeddings must be ``[embedding_rows,
    adapter.embedding_dim]``: one token count per release, never padded.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: UserAdapter | None = None,
        *,
        embedding_rows: int = 1,
        max_rows: int = 16,
        queue_limit: int = 256,
    ) -> None:
        self.backbone = backbone
        self.adapter = adapter
        self.embedding_rows = embedding_rows
        self.max_rows = max_rows
        self.queue_limit = queue_limit
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._open = 0  # accepted and not yet ended: in the queue, in a row or between the two
        self._came = 0.0  # when somebody last was accepted
        self._stopping = self._draining = False
        made_in = contextvars.copy_context()  # torch's settings belong to a thread
        self._thread = threading.Thread(
            target=made_in.run, args=(self._run,), name="engine", daemon=True
        )
        self._beat = time.monotonic()
        # Touched by the engine's thread alone:
        self._batch = Batch(backbone, adapter, self._settle)
        self._ticks = 0
        self._last = 0, 0.0  # rows and seconds of a tick
        self._total = 0, 0, 0.0  # ticks that stepped somebody, their rows and seconds

    def start(self) -> Engine:
        self._thread.start()
        return self

    def stop(self, *, drain: bool = True) -> None:
        """Accept nothing more, then finish what was accepted, or fail it with Interrupted."""
        with self._changed:
            self._stopping, self._draining = True, drain
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._batch.close()
        self._fail_outstanding(Interrupted("the engine was stopped"))

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(drain=kind is None)

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue one picture. Raises InvalidInput, QueueFull, Unavailable (stopping)."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[GenerationRequest]) -> list[Ticket]:
        """Queue all of these, or none. Raises InvalidInput also for more than could ever be taken
        at once."""
        room = self.max_rows + self.queue_limit
        if len(requests) > room:
            raise InvalidInput(f"at most {room} pictures at once", field="n")
        for request in requests:
            check(request, self.backbone, self.adapter, self.embedding_rows)
        tickets = [Ticket(request, self._cancel) for request in requests]
        with self._changed:
            if self._stopping:
                raise Unavailable("the engine is stopping")
            if self._open + len(tickets) > room:
                raise QueueFull(f"{len(self._queue)} pictures are waiting")
            self._open += len(tickets)
            self._came = time.monotonic()
            self._queue.extend(tickets)
            self._changed.notify_all()
        return tickets

    def position(self, ticket: Ticket) -> int:
        """How many places must become free before this one has its own; 0: it has, or there is one
        for it at the next step."""
        with self._changed:
            waiting = list(self._queue)
        before = waiting.index(ticket) + 1 if ticket in waiting else 0
        return max(0, before - (self.max_rows - self._batch.running))

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def active(self) -> int:
        """Pictures being denoised or decoded."""
        return len(self._batch)

    def stats(self) -> Stats:
        hits, misses = self.backbone.texts_found()
        steps, rows, seconds = self._total
        return Stats(
            queued=self.queued,
            active=self.active,
            ticks=self._ticks,
            rows=self._last[0],
            seconds=self._last[1],
            batch_limit=min(self.max_rows, self._batch.limits.smallest),
            text_hits=hits,
            text_misses=misses,
            steps=steps,
            total_rows=rows,
            total_seconds=seconds,
        )

    def reconfigure(self, *, max_rows: int | None = None, queue_limit: int | None = None) -> None:
        """Change the limits from the next tick on; whoever was accepted stays accepted.

        Raises InvalidInput, naming the field, and then changes nothing.
        """
        rows = self.max_rows if max_rows is None else max_rows
        queue = self.queue_limit if queue_limit is None else queue_limit
        if rows < 1:
            raise InvalidInput("must be at least 1", field="max_rows")
        if queue < 0:
            raise InvalidInput("must be at least 0", field="queue_limit")
        with self._changed:
            self.max_rows, self.queue_limit = rows, queue

    def healthy(self, silence_s: float = 60.0) -> bool:
        """The thread lives and has finished a tick (or idled) in the last ``silence_s`` seconds."""
        return self._thread.is_alive() and time.monotonic() - self._beat < silence_s

    def _cancel(self, ticket: Ticket) -> bool:
        with self._changed:
            if ticket.settled or ticket.cancelled:
                return False
            ticket.cancelled = True
            if ticket not in self._queue:
                return True  # in the batch: it leaves at the next tick
            self._queue.remove(ticket)
            self._open -= 1
        ticket.fail(Cancelled())
        return True

    # The engine's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.tick()
        except BaseException:
            log.exception("the engine died")
            with self._changed:
                self._stopping = True
            self._fail_outstanding(GenerationFailed("the engine died"))

    def _wait_for_work(self) -> bool:
        """Sleep until there is a row or a request; False when it is time to go."""
        with self._changed:
            while True:
                self._beat = time.monotonic()
                if self._stopping and not self._draining:
                    return False
                if len(self._batch) or self._queue:
                    return True
                if self._stopping:
                    return False
                self._changed.wait(IDLE_BEAT_S)

    def tick(self) -> None:
        """One turn of the engine: what its thread repeats, and nobody else once it is started."""
        started = time.monotonic()
        self._ticks += 1
        self._batch.drop_cancelled()
        idle = not len(self._batch)
        self._admit()
        if idle:
            self._wait_for_company()
            started = time.monotonic()  # waiting is no part of a step
        stepped = self._batch.step(self.max_rows)
        self._batch.decode()
        if stepped:
            seconds = time.monotonic() - started
            self._last = stepped, seconds
            steps, rows, before = self._total
            self._total = steps + 1, rows + stepped, before + seconds

    def _admit(self) -> None:
        for _ in range(self.max_rows - self._batch.running):
            with self._changed:
                if not self._queue:
                    return
                ticket = self._queue.popleft()
            try:
                self._batch.start(ticket)
            except BaseException:
                self._settle(ticket, GenerationFailed("the engine died"))
                raise

    def _wait_for_company(self) -> None:
        """Admit whoever comes until every place is taken or nobody came for ``COMPANY_S``, in which
        the texts of those who came are encoded: who comes alone hardly waits beyond that."""
        end = time.monotonic() + MOST_COMPANY_S
        while 0 < self._batch.running < self.max_rows:
            if not self._somebody_comes(min(self._came + COMPANY_S, end) - time.monotonic()):
                return
            self._batch.drop_cancelled()
            self._admit()

    def _somebody_comes(self, seconds: float) -> bool:
        with self._changed:
            if not (self._queue or self._stopping):
                self._changed.wait(seconds)
            return bool(self._queue) and not self._stopping

    def _settle(self, ticket: Ticket, outcome: Result | PPDError) -> None:
        """End a request once: a cancel that was acknowledged wins over a late picture."""
        with self._changed:
            self._open -= 1
            ticket.settled = not ticket.cancelled
        if ticket.cancelled:
            ticket.fail(Cancelled())
        elif isinstance(outcome, Result):
            ticket.succeed(outcome)
        else:
            ticket.fail(outcome)

    def _fail_outstanding(self, error: PPDError) -> None:
        with self._changed:
            waiting = [*self._batch.clear(), *self._queue]
            self._queue.clear()
        for ticket in waiting:
            self._settle(ticket, error)
