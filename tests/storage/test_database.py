from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ppd_serve.errors import StorageUnavailable
from ppd_serve.storage.database import Database
from ppd_serve.storage.records import Record
from ppd_serve.storage.store import Store
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
    store.close()
    again = place.open()
    assert again.get_user(P, "ann").pairs_total == 1
    again.close()


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
