"""The user index at a million users: what a read, a change, a search and a save cost.

    .venv/bin/python -m benchmarks.bench_index [--users 1000000]

Two kinds of users, each in a process of its own. *Simulated users*: tastes of the studio's people
(``training.data.users``: 24 numbers, of which most people use a few) through a fixed random map,
``tanh(A · taste + b)``, to 256 numbers of unit spread; then jitter, as readings of noisy choices
have it: two readings of one taste share a cosine of 0.92. *iid*: normal numbers without any
structure, where the hundredth neighbour is hardly farther than the tenth. No embedding looks like
this; an index that finds near ones by looking at a part can do nothing with it.

Recall is against brute force over all. A change is timed until ``get`` knows it, and until
``search`` puts the changed user first for the new embedding, the search included. FAISS has one
thread. Times are medians by the clock; a search's processor time stands beside, which says more
where others use the machine.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import psutil
import typer

from benchmarks.report import OUT, Figure, about, write
from ppd_serve.preferences.index import UserIndex
from training.data.users import SPLIT_SEEDS, Tastes, sample_tastes

DIM, BATCH = 256, 20_000
JITTER = 0.3  # of the spread: a cosine of 1 / (1 + 0.3²)
QUERIES, CHANGES, WATCHED, NEAREST = 200, 5_000, 100, 10
GOALS = {  # for users; iid embeddings are reported beside
    "get, µs": "≤ 50",
    "neighbours, ms": "≤ 5",
    "recall@10": "≥ 0.95",
    "upsert until get knows, µs": "≤ 50",
    "delete until get knows, µs": "≤ 50",
    "upsert until search knows, slowest, ms": "≤ 1000",
}
Draw = Callable[[int, np.random.Generator], np.ndarray]


def simulated() -> Draw:
    """Draws that many users' embeddings, float32 ``[N, 1, DIM]``."""
    fixed = np.random.default_rng(0)
    mixing, shift = 1.5 * fixed.standard_normal((24, DIM)), fixed.uniform(-1, 1, DIM)

    def mapped(people: Tastes) -> np.ndarray:
        tastes = np.concatenate([people.weight, people.curvature, people.level], axis=1)
        return np.tanh(tastes @ mixing + shift)

    many = mapped(sample_tastes(5_000, fixed))
    middle, spread = many.mean(0), many.std(0)

    def draw(count: int, random: np.random.Generator) -> np.ndarray:
        values = (mapped(sample_tastes(count, random)) - middle) / spread
        values += JITTER * random.standard_normal(values.shape)
        return values[:, None].astype(np.float32)

    return draw


def iid() -> Draw:
    return lambda count, random: random.standard_normal((count, 1, DIM), np.float32)


KINDS: dict[str, Callable[[], Draw]] = {"simulated users": simulated, "iid": iid}


def batches(draw: Draw, users: int) -> Iterator[tuple[int, np.ndarray]]:
    random = np.random.default_rng(SPLIT_SEEDS["train"])
    for start in range(0, users, BATCH):
        yield start, draw(min(BATCH, users - start), random)


class Truth:
    """The nearest of all to the first ``QUERIES`` users, themselves left out."""

    def __init__(self, first: np.ndarray) -> None:
        self._queries = unit(first[:QUERIES])
        self._scores = np.zeros((len(self._queries), 0), np.float32)
        self.numbers = np.zeros((len(self._queries), 0), np.int64)

    def see(self, start: int, values: np.ndarray) -> None:
        scores = self._queries @ unit(values).T
        if start == 0:
            np.fill_diagonal(scores, -2)
        here = np.broadcast_to(np.arange(start, start + len(values)), scores.shape)
        scores = np.concatenate([self._scores, scores], axis=1)
        numbers = np.concatenate([self.numbers, here], axis=1)
        best = np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self.numbers = np.take_along_axis(numbers, best, axis=1)


def unit(values: np.ndarray) -> np.ndarray:
    flat = values[:, 0]
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def name(number: int) -> str:
    return f"default/{number:032x}"  # as long as the server's


def measure(kind: str, users: int) -> dict[str, float]:
    """Figures of one kind of users; each is shown on stderr once it is known."""
    faiss.omp_set_num_threads(1)
    figures: dict[str, float] = {}

    def note(figure: str, value: float) -> None:
        figures[figure] = value
        print(f"{kind}: {figure} {value:.4g}", file=sys.stderr, flush=True)

    draw = KINDS[kind]()
    before = psutil.Process().memory_info().rss
    index, puts, truth = UserIndex("bench", 1, DIM), [], None
    for start, values in batches(draw, users):
        truth = truth or Truth(values)
        truth.see(start, values)
        for number, value in enumerate(values, start):
            begin = time.perf_counter()
            index.put(name(number), 1, value)
            puts.append(time.perf_counter() - begin)
    assert truth is not None
    note("put of a new user, µs", 1e6 * statistics.median(puts))
    note("the slowest of these, ms (cells train meanwhile)", 1e3 * max(puts))
    note("seconds till the cells are trained", timed(index.settle))
    note("memory, GB", (psutil.Process().memory_info().rss - before) / 1e9)

    random = np.random.default_rng(1)
    asked = [name(number) for number in random.integers(0, users, CHANGES)]
    gets = [timed(lambda id=id: index.get(id)) for id in asked]
    note("get, µs", 1e6 * statistics.median(gets))

    answers, walls, processor = [], [], []
    for number in range(len(truth.numbers)):
        begin, own = time.perf_counter(), time.thread_time()
        answers.append(index.search(name(number), NEAREST))
        walls.append(time.perf_counter() - begin)
        processor.append(time.thread_time() - own)
    note("neighbours, ms", 1e3 * statistics.median(walls))
    note("neighbours, ms of processor time", 1e3 * statistics.median(processor))
    hits = sum(
        len({name(near) for near in row} & {id for id, _ in answer})
        for row, answer in zip(truth.numbers.tolist(), answers, strict=True)
    )
    note("recall@10", hits / truth.numbers.size)

    upserts, deletes, seen = [], [], []
    for id, value in zip(asked, draw(CHANGES, random), strict=True):
        stored = index.get(id)
        version = stored[0] + 1 if stored else 1

        def upsert(id: str = id, version: int = version, value: np.ndarray = value) -> None:
            index.put(id, version, value)
            found = index.get(id)
            assert found is not None and found[0] == version

        upserts.append(timed(upsert))
    for version, value in enumerate(draw(WATCHED, random), CHANGES + 2):  # higher than any yet

        def watch(version: int = version, value: np.ndarray = value) -> None:
            id = asked[version % CHANGES]
            index.put(id, version, value)
            while index.search(value[0], 1)[0][0] != id:
                pass

        seen.append(timed(watch))
    for id in dict.fromkeys(asked):

        def delete(id: str = id) -> None:
            index.delete(id)
            assert index.get(id) is None

        deletes.append(timed(delete))
    note("upsert until get knows, µs", 1e6 * statistics.median(upserts))
    note("delete until get knows, µs", 1e6 * statistics.median(deletes))
    note("upsert until search knows, slowest, ms", 1e3 * max(seen))

    index.settle()
    with tempfile.TemporaryDirectory() as directory:
        note("seconds to save", timed(lambda: index.save(directory)))
        loaded = UserIndex("bench", 1, DIM)
        note("seconds to load, till get answers", timed(lambda: loaded.load(directory)))
    note("and till the cells are trained", timed(loaded.settle))
    return figures


def main(
    users: Annotated[int, typer.Option(min=1_000, help="How many there are.")] = 1_000_000,
    out: Path = OUT / "index.json",
) -> None:
    where = about()
    tables: dict[str, dict[str, Figure]] = {}
    for kind in KINDS:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawned) as process:
            found = process.submit(measure, kind, users).result()
        goals = {} if kind == "iid" else GOALS
        tables[f"{users:,} × {DIM}, {kind}"] = {
            name: Figure(value, goal=goals.get(name, "")) for name, value in found.items()
        }
    write(out, where, tables)


if __name__ == "__main__":
    typer.run(main)
