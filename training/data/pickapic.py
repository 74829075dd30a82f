"""Choices from Pick-a-Pic v2 (arXiv 2305.01569), or from any parquet file with its columns.

Rows are streamed through the ``datasets`` library, from the hub or from a disk, a few dozen at a
time; pictures stay encoded. A row is judged alone: one that is broken, down to values of another
type, is counted and skipped.
"""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.choices import (
    Choice,
    NoChoice,
    NoRows,
    Skipped,
    choice_of,
    first_won,
    prompt_of,
    user_of,
)
from training.data.readings import READ_AT_ONCE, Split, split_of

HUB_ID = "yuvalkirstain/pickapic_v2"
NEEDED = ("user_id", "caption", "label_0")
USEFUL = ("label_1", "has_label", "are_different", "image_0_uid", "image_1_uid")
PICTURES = ("jpg_0", "jpg_1")
_ROWS_AT_ONCE = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PickAPic:
    """Where the rows are.

    source: a hub id, a directory laid out like a repository of the hub, or parquet files.
    split: the source's own split; a source that names none is all ``train``. The hub's other
    splits share their users with it: to keep people apart, ask ``choices`` for ``users``.
    """

    source: str | Path | Sequence[Path] = HUB_ID
    revision: str | None = None
    split: str = "train"

    def check(self) -> None:
        """Raises NoRows for a source that cannot be reached, is no Parquet or lacks a column."""
        self._columns()

    def choices(
        self,
        skipped: Skipped,
        *,
        users: Split | None = None,
        least_pairs: int = READ_AT_ONCE,
        most_pairs: int | None = None,
    ) -> Iterator[Choice]:
        """Stream the choices in the source's order, counting in ``skipped`` what is left out.

        users: only people of this split. least_pairs: people with fewer labelled pairs are left
        out, which a first pass over all columns but the pictures finds; 1 for objectives that
        know no users. most_pairs: no more than this many of one person.

        A person whose pictures turn out to be broken may end with fewer pairs after all: that is
        for ``enough`` to see. Raises NoRows like ``check``.
        """
        few = self._users_with_less(least_pairs, users) if least_pairs > 1 else frozenset()
        skipped.users += len(few)
        taken: Counter[str] = Counter()
        for row in self._rows((*NEEDED, *USEFUL, *PICTURES), skipped):
            try:
                user = user_of(row)
                if users is not None and split_of(user) != users:
                    skipped.elsewhere.add(user)
                    continue
                if user in few:
                    raise NoChoice("user of few pairs")
                if most_pairs is not None and taken[user] >= most_pairs:
                    raise NoChoice("more pairs of one user")
                choice = choice_of(row)
            except NoChoice as fault:
                skipped.reasons[fault.reason] += 1
                continue
            taken[user] += 1
            skipped.kept += 1
            yield choice

    def pairs_by_user(self) -> Counter[str]:
        """How many labelled pairs each person has. Reads no pictures, so doesn't judge them."""
        count: Counter[str] = Counter()
        for row in self._rows((*NEEDED, *USEFUL), Skipped()):
            try:
                user, _, _ = user_of(row), prompt_of(row), first_won(row)
            except NoChoice:
                continue
            count[user] += 1
        return count

    def _users_with_less(self, least: int, users: Split | None) -> frozenset[str]:
        return frozenset(
            user
            for user, pairs in self.pairs_by_user().items()
            if pairs < least and (users is None or split_of(user) == users)
        )

    def _rows(self, wanted: Sequence[str], skipped: Skipped) -> Iterator[dict[str, Any]]:
        """Rows of the ``wanted`` columns. A file that cannot be read, or not to its end, is
        counted and left."""
        import pyarrow as pa
        from datasets import Features

        present = self._columns()
        types = Features({n: _tolerant(n, present[n]) for n in wanted if n in present})
        rows = self._load(columns=list(types), features=types, batch_size=_ROWS_AT_ONCE)
        # A local read error is a torn file; from afar it is the network, and nothing to go past.
        unreadable = (pa.ArrowException, ValueError, *([OSError] if self._is_local() else []))
        for file in range(rows.num_shards):
            try:
                yield from rows.shard(rows.num_shards, file)
            except unreadable as error:
                log.warning("%s, file %d of %d: %s", self.source, file, rows.num_shards, error)
                skipped.reasons["unreadable file"] += 1

    def _columns(self) -> dict[str, Any]:
        """The types of the source's columns, by name."""
        try:
            present = self._load(on_bad_files="skip").features
        except (OSError, ValueError, TypeError) as error:  # TypeError: of another kind of file
            raise NoRows(f"{self.source}: cannot be read as Parquet files: {error}") from error
        if missing := sorted({*NEEDED, *PICTURES} - set(present)):
            raise NoRows(f"{self.source}: no column {', '.join(missing)}")
        return dict(present)

    def _load(self, **options: Any) -> Any:
        from datasets import load_dataset

        if isinstance(self.source, str | Path) and not Path(self.source).is_file():
            place, split = str(self.source), self.split
            options["revision"] = self.revision
        else:
            files = [self.source] if isinstance(self.source, str | Path) else self.source
            place, split = "parquet", "train"
            options["data_files"] = [glob.escape(str(file)) for file in files]
        return load_dataset(place, split=split, streaming=True, **options)

    def _is_local(self) -> bool:
        return not isinstance(self.source, str) or Path(self.source).exists()


def _tolerant(name: str, feature: Any) -> Any:
    """A type that every value of a column fits into, so that one file's types cannot spoil
    another's: text for flags, labels and ids (``choice_of`` reads them from it), bytes where the
    text may not be UTF-8."""
    from datasets import Image, Value

    if name in PICTURES and not isinstance(feature, Value):
        return Image(decode=False) if isinstance(feature, Image) else feature
    return Value("binary" if name in (*PICTURES, "caption") else "string")
