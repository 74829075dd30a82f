"""Connections and transactions: what differs between SQLite and PostgreSQL is in this file."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ppd_serve.errors import StorageUnavailable
from ppd_serve.storage.records import Record

_BUSY_SECONDS = 30
# A server that went silent (its machine died, a packet filter drops) is unreachable after seconds,
# not after TCP's two hours; and it drops our advisory lock half a minute after we went silent.
_POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}
_SCRUB_SECONDS = 1
_CONNECTIONS = 32
_MIGRATION_LOCK = 0x70706473  # any number, the same in every process
_OUR_MISTAKES = (exc.IntegrityError, exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
_alembic = threading.Lock()  # its context is one global

T = TypeVar("T")
log = logging.getLogger(__name__)


class Database:
    """An engine with two kinds of transaction, ``read()`` and ``write()``.

    A read sees one snapshot. A write holds its locks from the first statement (SQLite:
    ``BEGIN IMMEDIATE``) and is on disk when its block has ended.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.path = _sqlite_path(self.engine)
        self._reads: Engine
        self._writes: Engine
        if self.path:
            self._reads = self.engine
            self._writes = self.engine.execution_options(begin="BEGIN IMMEDIATE")
            # SQLite admits one writer and lets the others poll; a lock is fair and wakes at once.
            self._writer: Any = threading.Lock()
        else:
            self._reads = self.engine.execution_options(isolation_level="REPEATABLE READ")
            self._writes = self.engine
            self._writer = nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with storage_errors(), Session(self._reads, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        with (
            storage_errors(),
            self._writer,
            Session(self._writes, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to the newest version, in one transaction, one process at a time."""
        config = alembic.config.Config()
        with (
            resources.as_file(resources.files("ppd_serve.storage") / "migrations") as scripts,
            storage_errors(),
            _alembic,
            self._writes.begin() as connection,
        ):
            if not self.path:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            config.set_main_option("script_location", str(scripts).replace("%", "%%"))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)

    def scrub(self) -> None:
        """Drop old page images, so that what was deleted is not in SQLite's log either. Never
        fails: what was committed is deleted, and the log is overwritten in time anyway. A reader
        that stays in the way for long prevents it, too."""
        if not self.path:
            return
        try:
            with self._writer, self.engine.connect() as connection:
                raw: Any = connection.connection.driver_connection
                raw.rollback()  # the log can't be truncated from within a transaction
                try:
                    raw.execute(f"PRAGMA busy_timeout={_SCRUB_SECONDS * 1000}")
                    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    raw.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
        except (exc.SQLAlchemyError, sqlite3.Error) as error:
            log.warning("SQLite's log was not cleared after a deletion: %r", error)

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def storage_errors() -> Iterator[None]:
    """What the database or the blob store does not do becomes ``StorageUnavailable``."""
    try:
        yield
    except exc.TimeoutError as error:  # no connection came free
        raise StorageUnavailable("The database is not available") from error
    except exc.DBAPIError as error:
        if isinstance(error, _OUR_MISTAKES) and not error.connection_invalidated:
            raise
        raise StorageUnavailable("The database is not available") from error
    except OSError as error:
        raise StorageUnavailable("The blob store is not available") from error


def insert(session: Session, record: type[Record]) -> sqlite.Insert | postgresql.Insert:
    """``INSERT`` with ``on_conflict_do_*``, which both databases have under the same name."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(record)
    return postgresql.insert(record)


def batches(items: Iterable[T], size: int = 500) -> Iterator[Sequence[T]]:
    """Databases bound the number of parameters of one statement."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() in ("postgres", "postgresql"):
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,  # after a restart of the server, get a new connection and go on
            connect_args={k: v for k, v in _POSTGRES.items() if k not in parsed.query},
            pool_size=_CONNECTIONS // 2,
            max_overflow=_CONNECTIONS // 2,
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise ValueError("database_url must be sqlite:////path/to/file or postgresql://…")
    Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        connect_args={"timeout": _BUSY_SECONDS},
        pool_size=_CONNECTIONS // 2,
        max_overflow=_CONNECTIONS // 2,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would send its own, deferred BEGIN
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # deleted people leave no bytes in free pages

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _sqlite_path(engine: Engine) -> Path | None:
    return Path(str(engine.url.database)).absolute() if engine.dialect.name == "sqlite" else None
