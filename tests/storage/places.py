"""Where tests keep their stores: a fresh SQLite file, or a fresh database in a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from ppd_serve.storage.store import NewImage, NewPair, Store

PATIENCE = 60  # seconds, for what takes a moment


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = time.time()  # other processes, with a real clock, may share the place

    def __call__(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += 3600 * hours


@dataclass
class Place:
    """The two URLs of a store, and the clock of all stores opened here."""

    database_url: str
    blob_url: str
    clock: Clock = field(default_factory=Clock)

    def open(self) -> Store:
        return Store.open(self.database_url, self.blob_url, clock=self.clock)

    def blobs(self) -> set[str]:
        return {path.name for path in Path(self.blob_url).rglob("*") if path.is_file()}


class Postgres:
    """A server of our own, on a Unix socket in its own directory; no port."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.directory = Path(tempfile.mkdtemp(prefix="ppd-pg-"))
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self.directory, "postgres")
        data = str(self.directory / "data")
        self._run("initdb", "-D", data, "-U", "test", "--auth=trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.directory} -c fsync=off"
        log = str(self.directory / "log")
        self._run("pg_ctl", "-D", f"{self.directory}/data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.directory}/data", "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://test@/{database}?host={self.directory}"

    def create(self, database: str) -> str:
        self._run("createdb", "-h", str(self.directory), "-U", "test", database)
        return self.url(database)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # Not captured: the server inherits the pipes, and reading them would wait for its end.
        subprocess.run(
            command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )


class Halt:
    """Holds the first statement of a store that begins like this, until it may go on."""

    def __init__(self, store: Store, statement: str) -> None:
        self._reached, self._goes_on = threading.Event(), threading.Event()

        def hold(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
            if sql.startswith(statement) and not self._reached.is_set():
                self._reached.set()
                assert self._goes_on.wait(PATIENCE)

        event.listen(store._database.engine, "before_cursor_execute", hold)

    def reach(self) -> None:
        assert self._reached.wait(PATIENCE)

    def go_on(self) -> None:
        self._goes_on.set()


def until_waiting(store: Store, *works: Future[Any]) -> None:
    """Until each of them has ended, or waits for a lock. In SQLite a second writer waits from its
    first statement on, so there is nothing to see."""
    engine = store._database.engine
    if engine.dialect.name == "sqlite":
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + PATIENCE
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while len(wait(works, timeout=0.01).not_done) > (connection.scalar(waiting) or 0):
            assert time.monotonic() < deadline


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


def picture(content: str) -> NewImage:
    """The store doesn't look into pictures, so any bytes will do."""
    return NewImage(content.encode(), "image/png", 8, 8)


def pair(name: str = "x") -> NewPair:
    return NewPair(f"prompt {name}", picture(f"{name} preferred"), picture(f"{name} rejected"))
