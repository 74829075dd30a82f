"""Which process is still alive, told by the operating system or the database, not by a clock.

Work in progress (a running key, an unfinished generation) carries the id of the store that began
it. That store holds a lock of this name for its life: a file lock beside the SQLite database, an
advisory lock in PostgreSQL. The lock goes when the process dies, however it dies; so what is
unfinished under a name that can be locked was interrupted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from ppd_serve.storage.database import Database


class FileLocks:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self.me = secrets.token_hex(7)
        self._descriptor = os.open(self._directory / self.me, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def hold(self) -> None:
        """A file lock is ours until we die."""

    def is_dead(self, owner: str) -> bool:
        try:
            descriptor = os.open(self._directory / owner, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        (self._directory / owner).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        (self._directory / self.me).unlink(missing_ok=True)
        os.close(self._descriptor)


class AdvisoryLocks:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self._held = False
        self.me = secrets.token_hex(7)
        self.hold()

    def hold(self) -> None:
        """Take our lock again if the connection broke; the server dropped it then, or will when it
        finds out: until that our own dead session speaks for us, and nobody waits for it."""
        with self._guard:
            connection = self._connected()
            if not self._held:
                self._held = _try_lock(connection, self.me)

    def is_dead(self, owner: str) -> bool:
        with self._guard:
            connection = self._connected()
            locked = _try_lock(connection, owner)
            if locked:
                name = {"name": int(owner, 16)}
                connection.execute(text("SELECT pg_advisory_unlock(:name)"), name)
            return locked

    def close(self) -> None:
        with self._guard:
            self._disconnect()

    def _connected(self) -> Connection:
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                return self._connection
            except DBAPIError:
                self._disconnect()
        self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # back in the pool it would keep the lock
            self._connection.close()
            self._connection, self._held = None, False


def _try_lock(connection: Connection, owner: str) -> bool:
    name = {"name": int(owner, 16)}
    return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:name)"), name))


Owners = FileLocks | AdvisoryLocks


def open_owners(database: Database) -> Owners:
    if database.path:
        return FileLocks(database.path.with_name(database.path.name + "-owners"))
    return AdvisoryLocks(database.engine)
