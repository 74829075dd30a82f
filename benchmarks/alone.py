"""Work in a thread that ends with it, so that what was measured before slows nothing down.

torch's workers on a CPU belong to the thread that computes and live as long as it does. While two
threads of a process have workers, libgomp lets all of them sleep between operations: stock
diffusers takes 2.5 times as long for a picture beside an engine that has only drawn once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from benchmarks.report import seconds

T = TypeVar("T")


def alone(work: Callable[[], T]) -> T:
    """What ``work`` returns, or raises."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def seconds_alone(run: Callable[[], object]) -> float:
    return alone(lambda: seconds(run))
