from __future__ import annotations

import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ppd_serve.errors import StorageUnavailable
from ppd_serve.storage import database
from ppd_serve.storage.database import Database
from ppd_serve.storage.owners import AdvisoryLocks
from ppd_serve.storage.records import Record
from ppd_serve.storage.store import NewPair, Store
from tests.storage.places import Place, Postgres, pair, picture

P = "default"


def test_migrations_make_exactly_the_models(place: Place) -> None:
    place.open().close()
    database = Database(place.database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
    database.close()


def test_a_store_opens_again_with_everything_in_it(place: Place) -> None:
    store = place.open()
    store.add_pairs(P, "ann", [pair()])
    identity = store.database_id()
    store.close()
    again = place.open()
    assert again.get_user(P, "ann").pairs_total == 1
    assert again.database_id() == identity
    again.close()


def test_no_two_databases_are_the_same(tmp_path: Path) -> None:
    places = [Place(f"sqlite:///{tmp_path}/{n}.db", str(tmp_path / "blobs")) for n in "ab"]
    stores = [place.open() for place in places]
    assert stores[0].database_id() != stores[1].database_id()
    for store in stores:
        store.close()


def test_a_database_of_the_first_schema_is_brought_up(place: Place) -> None:
    old = Database(place.database_url)
    old.migrate("0001")
    with old.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO users (project, user_id, incarnation, version, pairs_total, pairs_added,"
            " created) VALUES ('default', 'ann', 'i', 3, 1, 2, 0)"
        )
    old.close()
    store = place.open()
    assert store.get_user(P, "ann").version == 3
    assert store.put_embedding(P, "ann", "i", 3, "s", np.ones((1, 2)), 1, None)
    assert store.database_id()
    store.close()


def test_many_may_open_a_new_store_at_once(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        for store in list(pool.map(lambda _: place.open(), range(4))):
            store.ping()
            store.close()


def test_sqlite_is_as_careful_as_promised(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/new/directory/ppd.db", str(tmp_path / "blobs"))
    with store._database.write() as session:
        pragmas = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }
    store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_a_database_that_can_not_keep_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Store.open(url, str(tmp_path))


def test_a_ruined_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "ppd.db"
    path.write_bytes(b"this is no database " * 500)
    with pytest.raises(StorageUnavailable) as error:
        Store.open(f"sqlite:///{path}", str(tmp_path / "blobs"))
    assert pickle.loads(pickle.dumps(error.value)).status == 503


@pytest.mark.parametrize("trouble", ["locked", "full", "unreachable"])
def test_sqlite_may_fail_and_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    place = Place(f"sqlite:///{tmp_path}/data/ppd.db", str(tmp_path / "blobs"))
    store = place.open()
    store.add_pairs(P, "ann", [pair("a")])
    connections = store._database.engine
    other = sqlite3.connect(tmp_path / "data" / "ppd.db", isolation_level=None)
    if trouble == "locked":  # by a backup, say
        other.execute("BEGIN IMMEDIATE")
    elif trouble == "full":
        with connections.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1")
    else:  # a volume that went away
        connections.dispose()
        (tmp_path / "data").rename(tmp_path / "away")
        (tmp_path / "data").write_text("a file where the directory was")

    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            store.add_pairs(P, "ann", [NewPair("x" * 100_000, picture("l"), picture("r"))])
    if trouble == "unreachable":
        with pytest.raises(StorageUnavailable):
            store.ping()
    else:
        assert store.get_user(P, "ann").pairs_total == 1  # reads go on

    if trouble == "locked":
        other.execute("ROLLBACK")
    elif trouble == "full":
        connections.dispose()
    else:
        (tmp_path / "data").unlink()
        (tmp_path / "away").rename(tmp_path / "data")
    other.close()
    store.ping()
    assert store.add_pairs(P, "ann", [pair("b")]).pairs_total == 2
    assert [p.prompt for p in store.load_pairs(P, "ann").pairs] == ["prompt a", "prompt b"]
    store.close()


def test_what_is_deleted_is_deleted_though_the_log_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_SCRUB_SECONDS", 0)
    place = Place(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))
    store = place.open()
    store.add_pairs(P, "ann", [pair()])

    class Broken:
        """A connection that fails at what SQLAlchemy does not see."""

        def __init__(self, raw: Any) -> None:
            self.raw, self.done = raw, []

        def execute(self, statement: str) -> Any:
            self.done.append(statement)
            if "checkpoint" in statement:
                raise sqlite3.OperationalError("disk I/O error")
            return self.raw.execute(statement)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.raw, name)

    with store._database.engine.connect() as connection:
        record = connection.connection._connection_record  # type: ignore[attr-defined]
    broken = Broken(record.dbapi_connection)
    monkeypatch.setattr(record, "dbapi_connection", broken)
    assert store.delete_user(P, "ann") is not None
    assert "disk I/O error" in caplog.text
    assert broken.done[-1] == "PRAGMA busy_timeout=30000"
    assert store.delete_user(P, "ann") is None
    store.close()


def test_blobs_away_is_unavailable_and_nothing_is_half_done(place: Place) -> None:
    store = place.open()
    image = store.add_image(P, picture("x"))
    blobs = Path(place.blob_url)
    blobs.rename(blobs.with_name("away"))
    blobs.write_text("a file where the directory was")
    with pytest.raises(StorageUnavailable):
        store.add_pairs(P, "ann", [pair()])
    with pytest.raises(StorageUnavailable):
        store.read_image(P, image.image_id)
    blobs.unlink()
    blobs.with_name("away").rename(blobs)
    assert store.read_image(P, image.image_id)[1] == b"x"
    assert store.add_pairs(P, "ann", [pair()]).version == 1
    store.close()


def test_a_lock_that_our_own_broken_session_keeps_is_not_waited_for(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The server may keep a half-open session for long; until it ends, that one speaks for us."""
    place = Place(postgres.create("half_open"), str(tmp_path / "blobs"))
    store = place.open()
    generation = store.create_generation(P, {})
    owners = store._owners
    assert isinstance(owners, AdvisoryLocks)
    broken, owners._connection, owners._held = owners._connection, None, False
    store.ping()
    assert not owners._held
    assert broken is not None
    broken.invalidate()
    broken.close()
    while not owners._held:
        store.ping()
    other = place.open()
    assert other.get_generation(P, generation.generation_id).state == "queued"
    other.close()
    store.close()


def test_postgresql_may_go_away_and_come_back(postgres: Postgres, tmp_path: Path) -> None:
    place = Place(postgres.create("restarted"), str(tmp_path / "blobs"))
    store = place.open()
    generation = store.create_generation(P, {})
    postgres.stop()
    try:
        for call in (store.ping, store.sweep, lambda: store.add_pairs(P, "ann", [pair()])):
            with pytest.raises(StorageUnavailable):
                call()
        with pytest.raises(StorageUnavailable):
            place.open()
    finally:
        postgres.start()
    store.ping()
    assert store.add_pairs(P, "ann", [pair()]).version == 1
    store.sweep()
    other = place.open()  # must not take the living for dead, though its lock broke off
    assert other.get_generation(P, generation.generation_id).state == "queued"
    other.close()
    store.close()
