"""Large batches on a CPU: a part of the pictures to each core, side by side.

torch shares every operation out to all cores and waits for the last of them, a thousand times in a
forward. But a server's cores have other work too, and whichever is called away holds up all. Parts
that go through the network on a core each wait for one another once, at the end of a step (sixteen
callers of the studio on two cores: 4 to 15 % more pictures a second).

All parts run on the one interpreter, which takes as long for a picture as for many. So no part is
of fewer than ``LEAST`` pictures, and a smaller batch is one part, on all cores.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

LEAST = 4

Row = TypeVar("Row")
T = TypeVar("T")


class Lanes:
    """A thread for each core that torch would share an operation of the calling thread out to; none
    on anything but a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._pool: ThreadPoolExecutor | None = None

    def each(
        self, work: Callable[[list[Row]], T], rows: Sequence[Row]
    ) -> list[tuple[list[Row], T]]:
        """``work`` on parts of ``rows`` (inference only). Every part with what came of it, or the
        error of the first that raised one."""
        cores = torch.get_num_threads() if self._on_cpu else 1
        if cores == 1 or len(rows) < LEAST * cores:
            return [(list(rows), work(list(rows)))] if rows else []
        if self._pool is None:
            self._pool = _a_core_each(cores)
        parts = [list(rows[lane::cores]) for lane in range(cores)]
        doing = [
            self._pool.submit(contextvars.copy_context().run, _inferring, work, part)
            for part in parts
        ]
        return [(part, done.result()) for part, done in zip(parts, doing, strict=True)]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _inferring(work: Callable[[list[Row]], T], part: list[Row]) -> T:
    with torch.inference_mode():  # each thread's own
        return work(part)


def _a_core_each(cores: int) -> ThreadPoolExecutor:
    """Threads that share nothing out. How many cores an operation goes to is each thread's setting,
    but what was set last is what new threads begin with: so it is set again in this one."""
    started = threading.Barrier(cores + 1)

    def begin() -> None:
        torch.get_num_threads()  # else the first operation sets what threads begin with
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(cores, "lane", begin)
    for _ in range(cores):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(torch.get_num_threads())
    return pool
