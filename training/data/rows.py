"""Choices in a file, under the column names of Pick-a-Pic v2 (arXiv 2305.01569); and the studio's.

A row is two pictures of one caption and who won: ``label_0`` and ``label_1`` are 1 and 0, or 0.5
twice for a tie. ``jpg_0`` holds any encoded picture, whatever its name says. Training takes
``choices.Choice`` from every source; the studio's people give both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from ppd_serve.preferences.pairs import Pair
from training.data.choices import Choice
from training.data.pool import Pool, png
from training.data.world import CAPTIONS

_ENCODED = 4096  # pictures of the studio kept encoded, about 25 KB each
_ROW_GROUP = 100


class Row(TypedDict):
    """The columns that training needs; a file may hold more."""

    user_id: int
    caption: str
    jpg_0: bytes
    jpg_1: bytes
    image_0_uid: str
    image_1_uid: str
    label_0: float
    label_1: float
    has_label: bool
    are_different: bool


def studio_rows(
    pool: Pool, preferred: NDArray[np.int64], rejected: NDArray[np.int64], *, seed: int = 0
) -> Iterator[Row]:
    """Choices ``[people, n]`` (pool indices) in arrival order; which side won is left to chance."""
    first_wins = np.random.default_rng(seed).random(preferred.shape) < 0.5
    for user, k in np.ndindex(*preferred.shape):
        pair = int(preferred[user, k]), int(rejected[user, k])
        won = bool(first_wins[user, k])
        zero, one = pair if won else pair[::-1]
        yield Row(
            user_id=user,
            caption=str(CAPTIONS[pool.captions[zero]]),
            jpg_0=png(pool.images[zero]),
            jpg_1=png(pool.images[one]),
            image_0_uid=f"studio-{zero}",
            image_1_uid=f"studio-{one}",
            label_0=float(won),
            label_1=float(not won),
            has_label=True,
            are_different=zero != one,
        )


def studio_choices(
    pool: Pool,
    preferred: NDArray[np.int64],
    rejected: NDArray[np.int64],
    *,
    name: str = "train",
) -> Iterator[Choice]:
    """The same choices ``[people, n]`` as training takes them. ``name`` says which people and
    pictures these are, so that those of another pool are never taken for them."""
    encoded = lru_cache(_ENCODED)(lambda index: png(pool.images[index]))
    for user, k in np.ndindex(*preferred.shape):
        w, x = int(preferred[user, k]), int(rejected[user, k])
        yield Choice(
            user=f"studio-{name}-{user}",
            prompt=str(CAPTIONS[pool.captions[w]]),
            preferred=encoded(w),
            rejected=encoded(x),
            preferred_id=f"studio-{name}-{w}",
            rejected_id=f"studio-{name}-{x}",
        )


def pair_of(row: Row) -> Pair | None:
    """The choice that a row tells of; nothing for a tie, a missing label or twice the same."""
    if not (row["has_label"] and row["are_different"]) or row["label_0"] == row["label_1"]:
        return None
    zero, one = row["jpg_0"], row["jpg_1"]
    won = row["label_0"] > row["label_1"]
    return Pair(row["caption"], *((zero, one) if won else (one, zero)))


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """A parquet file as Pick-a-Pic's shards are; how many rows it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, count = iter(rows), 0
    table = pa.Table.from_pylist([dict(row) for row in islice(rows, _ROW_GROUP)])
    with pq.ParquetWriter(path, table.schema) as writer:
        while table.num_rows:
            writer.write_table(table)
            count += table.num_rows
            some = [dict(row) for row in islice(rows, _ROW_GROUP)]
            table = pa.Table.from_pylist(some, schema=table.schema)
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a parquet file of this shape, a few at a time."""
    import pyarrow.parquet as pq

    wanted = list(Row.__annotations__)
    for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=wanted):
        rows: list[dict[str, Any]] = batch.to_pylist()
        yield from cast(list[Row], rows)
