"""Choices from a server's database and pictures, also while it runs. Nothing is written.

Only what lives is read: a person or pair that has been deleted is not there, and one that is
deleted during the reading stops coming. Each look at the database is short, because a long one
would keep the server from scrubbing deleted bytes out of SQLite's log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from sqlalchemy import event, make_url, select
from sqlalchemy.orm import aliased

from ppd_serve.storage.blobs import Blobs, digest_of
from ppd_serve.storage.database import Database, storage_errors
from ppd_serve.storage.records import ImageRecord, PairRecord, UserRecord
from ppd_serve.storage.values import DEFAULT_PROJECT
from training.data.choices import Choice, Skipped
from training.data.readings import Split, split_of

_USERS_AT_ONCE = 500


class _Stored(NamedTuple):
    pair_id: str
    prompt: str
    preferred: str
    rejected: str


def live_choices(
    database_url: str,
    blob_url: str,
    skipped: Skipped,
    *,
    project: str = DEFAULT_PROJECT,
    users: Split | None = None,
    most_pairs: int | None = None,
) -> Iterator[Choice]:
    """All pairs of a project, or of its people in one split, person by person, each person's in
    arrival order; of one person at most the first ``most_pairs`` that can be used.

    database_url, blob_url: as the server's settings have them (``database``, ``blobs``).
    ``Choice.user`` is ``project/user_id``, so people of two projects never meet; a picture's id is
    its digest. Counts pictures whose file is missing or torn. Raises ``FileNotFoundError``
    where there is no such database or place, ``StorageUnavailable`` when one of them goes away.
    """
    database, blobs = open_live(database_url, blob_url)
    return _choices(database, blobs, skipped, project, users, most_pairs)


def open_live(database_url: str, blob_url: str) -> tuple[Database, Blobs]:
    """A server's store, for reading alone. Raises ``FileNotFoundError``, ``StorageUnavailable``."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise FileNotFoundError("database_url: there is no such database")
    file_system, root = fsspec.core.url_to_fs(blob_url)
    if not file_system.exists(root):
        raise FileNotFoundError("blob_url: there is no such place")
    with storage_errors():
        database, blobs = Database(database_url), Blobs(blob_url)
    _read_only(database)
    return database, blobs


def _choices(
    database: Database,
    blobs: Blobs,
    skipped: Skipped,
    project: str,
    users: Split | None,
    most_pairs: int | None,
) -> Iterator[Choice]:
    with closing(database):
        for user, user_id in people(database, project, None):
            if users is not None and split_of(user) != users:
                skipped.elsewhere.add(user)
                continue
            taken = 0
            for pair in _pairs(database, project, user_id):
                if most_pairs is not None and taken >= most_pairs:
                    skipped.reasons["more pairs of one user"] += 1
                    continue
                with storage_errors():
                    preferred, rejected = (
                        picture_bytes(blobs, pair.preferred),
                        picture_bytes(blobs, pair.rejected),
                    )
                if not _lives(database, pair):
                    continue
                if preferred is None or rejected is None:
                    skipped.reasons["no picture"] += 1
                elif (digest_of(preferred), digest_of(rejected)) != (pair.preferred, pair.rejected):
                    skipped.reasons["broken picture"] += 1
                elif pair.preferred == pair.rejected:
                    skipped.reasons["same picture"] += 1
                else:
                    taken += 1
                    skipped.kept += 1
                    yield Choice(
                        user=user,
                        prompt=pair.prompt,
                        preferred=preferred,
                        rejected=rejected,
                        preferred_id=pair.preferred,
                        rejected_id=pair.rejected,
                    )


def people(database: Database, project: str, users: Split | None) -> Iterator[tuple[str, str]]:
    """``project/user_id`` and user id of everybody, or of those in one split."""
    for user_id in _users(database, project):
        user = f"{project}/{user_id}"
        if users is None or split_of(user) == users:
            yield user, user_id


def _users(database: Database, project: str) -> Iterator[str]:
    last = ""
    while True:
        with database.read() as session:
            some = session.scalars(
                select(UserRecord.user_id)
                .where(UserRecord.project == project, UserRecord.user_id > last)
                .order_by(UserRecord.user_id)
                .limit(_USERS_AT_ONCE)
            ).all()
        if not some:
            return
        yield from some
        last = some[-1]


def _pairs(database: Database, project: str, user_id: str) -> list[_Stored]:
    preferred, rejected = aliased(ImageRecord), aliased(ImageRecord)
    with database.read() as session:
        rows = session.execute(
            select(PairRecord.pair_id, PairRecord.prompt, preferred.digest, rejected.digest)
            .join(preferred, preferred.image_id == PairRecord.preferred_image_id)
            .join(rejected, rejected.image_id == PairRecord.rejected_image_id)
            .where(PairRecord.project == project, PairRecord.user_id == user_id)
            .order_by(PairRecord.position)
        ).all()
    return [_Stored(*row) for row in rows]


def _lives(database: Database, pair: _Stored) -> bool:
    with database.read() as session:
        return session.get(PairRecord, pair.pair_id) is not None


def picture_bytes(blobs: Blobs, digest: str) -> bytes | None:
    """None where the file is missing."""
    try:
        return blobs.get(digest)
    except FileNotFoundError:
        return None


def _read_only(database: Database) -> None:
    """Let the database itself refuse what we never mean to do."""

    @event.listens_for(database.engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        if database.path:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.read_only = True
