"""What the VLM reads of people's choices: four at once, as a Ray Data job over chunks on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ppd_serve.preferences.load import load_encoder
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release
from training.data.choices import Choice
from training.data.readings import MOST_READ, READ_AT_ONCE

Array = NDArray[np.float32]
Index = NDArray[np.int64]
_FOURS, _LEFT_OUT = "chunks.parquet", "left-out.parquet"


class Readings(NamedTuple):
    """Embeddings ``[R, rows, dim]``, whose each is and of how many pairs, ``[R]``; and as
    ``ChoiceSet`` has them, ``read_in`` and ``read_for`` ``[P]``."""

    embedding: Array
    user: Index
    pairs: Index
    read_in: Index
    read_for: Index


class _Chunk(NamedTuple):
    """``only_for``: the pair that is left out and that alone it is read for, or -1."""

    user: int
    pairs: list[int]
    only_for: int = -1


class Chunks:
    """Everybody's choices in fours, without overlap, on disk as soon as they are full; the last one
    to three of a person are in none, and those after the first ``most``.

    What has seen a choice's pictures cannot condition it. So for a choice whose pictures are in all
    fours of its person, up to four others that show neither are read once more, for it alone.
    """

    def __init__(self, directory: Path, most: int = MOST_READ) -> None:
        self.directory, self.most = directory, most
        self.paths = [directory / name for name in (_FOURS, _LEFT_OUT)]
        self.remove()
        self.chunks: list[_Chunk] = []
        self._own: dict[int, list[int]] = {}  # everybody's choices by number, as they come
        self._pictures: dict[int, frozenset[str]] = {}
        self._waiting: dict[int, list[tuple[int, Pair]]] = {}
        self._writers: dict[Path, Any] = {}

    def add(self, user: int, number: int, choice: Choice) -> None:
        own = self._own.setdefault(user, [])
        own.append(number)
        self._pictures[number] = frozenset((choice.preferred_id, choice.rejected_id))
        if len(own) > self.most:
            return
        waiting = self._waiting.setdefault(user, [])
        waiting.append((number, choice.pair))
        if len(waiting) == READ_AT_ONCE:
            numbers, pairs = zip(*self._waiting.pop(user), strict=True)
            self._write(self.paths[0], _Chunk(user, list(numbers)), list(pairs))

    def finish(self) -> None:
        import pyarrow.parquet as pq

        fours, left_out = self.paths
        if fours in self._writers:
            self._writers[fours].close()
            read: dict[int, list[int]] = {}
            for number, chunk in enumerate(self.chunks):
                read.setdefault(chunk.user, []).append(number)
            with pq.ParquetFile(fours) as stored:
                for user, own in read.items():
                    self._leave_out(user, own, stored)
        if left_out in self._writers:
            self._writers[left_out].close()
        self._waiting.clear()

    def remove(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _leave_out(self, user: int, fours: list[int], stored: Any) -> None:
        """``stored``: the fours on disk, each a row group by its number."""
        showing: dict[str, set[int]] = {}
        for four in fours:
            for pair in self.chunks[four].pairs:
                for picture in self._pictures[pair]:
                    showing.setdefault(picture, set()).add(four)
        seen_by_all = [
            pair for pair in self._own[user]
            if len(set().union(*(showing.get(p, set()) for p in self._pictures[pair])))
            == len(fours)
        ]  # fmt: skip
        if not seen_by_all:
            return
        told: list[tuple[int, Pair]] = []
        for four in fours:
            row = stored.read_row_group(four).to_pylist()[0]
            told += zip(self.chunks[four].pairs, _pairs(row), strict=True)
        told += self._waiting.get(user, [])
        for pair in seen_by_all:
            others = [one for one in told if not self._pictures[one[0]] & self._pictures[pair]]
            if others:
                numbers, pairs = zip(*others[:READ_AT_ONCE], strict=True)
                self._write(self.paths[1], _Chunk(user, list(numbers), pair), list(pairs))

    def _write(self, path: Path, chunk: _Chunk, pairs: list[Pair]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = {
            "number": len(self.chunks),
            "prompts": [pair.prompt for pair in pairs],
            "preferred": [pair.preferred for pair in pairs],
            "rejected": [pair.rejected for pair in pairs],
        }
        self.chunks.append(chunk)
        table = pa.Table.from_pylist([row])
        if path not in self._writers:
            self._writers[path] = pq.ParquetWriter(path, table.schema)
        self._writers[path].write_table(table)


def _pairs(row: dict[str, Any]) -> list[Pair]:
    columns = (row[name] for name in ("prompts", "preferred", "rejected"))
    return [Pair(*parts) for parts in zip(*columns, strict=True)]


class ReadChunks:
    """A Ray Data worker: one VLM, and the embedding of every chunk it is given."""

    def __init__(self, encoder: str, how: dict[str, Any]) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        self.encoder = load_encoder(encoder, **how)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {name: batch[name][k] for name in ("prompts", "preferred", "rejected")}
            for k in range(len(batch["number"]))
        ]
        found = [reading.embedding for reading in self.encoder.embed_all([_pairs(r) for r in rows])]
        return {"number": batch["number"], "embedding": np.stack(found)}


def read(
    chunks: Chunks, pairs: int, release: Release, how: dict[str, Any], workers: int
) -> Readings:
    """Of a finished ``chunks`` over so many ``pairs``; none where the release has no encoder."""
    read_in, read_for = np.full((2, pairs), -1)
    paths = [str(path) for path in chunks.paths if path.exists()]
    if not paths or release.encoder_path is None:
        none = np.zeros(0, np.int64)
        shape = release.manifest.embedding_shape or (1, 1)
        return Readings(np.zeros((0, *shape), np.float32), none, none, read_in, read_for)
    import ray.data

    with ray_here(workers):
        found = ray.data.read_parquet(paths).map_batches(
            ReadChunks,
            fn_constructor_args=(str(release.encoder_path.resolve()), how),
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if how["device"] == "cuda" else 0,
        )
        rows = sorted(found.take_all(), key=lambda row: int(row["number"]))
    for reading, chunk in enumerate(chunks.chunks):
        if chunk.only_for < 0:
            read_in[chunk.pairs] = reading
        else:
            read_for[chunk.only_for] = reading
    return Readings(
        np.stack([np.asarray(row["embedding"], np.float32) for row in rows]),
        np.array([chunk.user if chunk.only_for < 0 else -1 for chunk in chunks.chunks]),
        np.array([len(chunk.pairs) for chunk in chunks.chunks]),
        read_in,
        read_for,
    )


@contextmanager
def ray_here(workers: int) -> Iterator[None]:
    """The cluster that ``RAY_ADDRESS`` names, or one of this machine for as long as it takes."""
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray's 15 would let any other work on the machine come before what is waited for here.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init("local", num_cpus=workers + 1, include_dashboard=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()
