"""What the parts of the store share: the database, the blobs, who we are, and the time."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ppd_serve.storage.blobs import Blobs
from ppd_serve.storage.database import Database
from ppd_serve.storage.owners import Owners
from ppd_serve.storage.records import SequenceRecord


class StoreBase:
    def __init__(
        self, database: Database, blobs: Blobs, owners: Owners, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._owners = owners
        self._clock = clock


def new_id(kind: str) -> str:
    """A random id that fits the API's rules for ids."""
    return f"{kind}_{secrets.token_hex(16)}"


def next_sequence(session: Session) -> int:
    """The number of a change that commits with this transaction, in commit order."""
    session.execute(update(SequenceRecord).values(value=SequenceRecord.value + 1))
    return session.scalars(select(SequenceRecord.value)).one()
