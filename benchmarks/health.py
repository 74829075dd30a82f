"""Asks ``/healthz`` again and again, in a process of its own: nothing that the callers beside it do
adds to what it measures. ``python -m benchmarks.health URL`` until its input ends."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import httpx

EVERY_S = 0.1


@contextmanager
def watched(url: str) -> Iterator[list[tuple[int, float]]]:
    """Status and seconds of each answer; in the list once the block has ended."""
    found: list[tuple[int, float]] = []
    command = [sys.executable, "-m", "benchmarks.health", url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()  # it has had its first answer
        yield found
        told, _ = asking.communicate()
    found += [(status, seconds) for status, seconds in json.loads(told)]


def ask_until_told(url: str) -> None:
    found = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        http.get("/healthz")
        print("asking", flush=True)
        while not select.select([sys.stdin], [], [], EVERY_S)[0]:
            began = perf_counter()
            status = http.get("/healthz").status_code
            found.append((status, perf_counter() - began))
    print(json.dumps(found))


if __name__ == "__main__":
    ask_until_told(sys.argv[1])
