"""API keys: made, told once, kept as digests, revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppd_serve.errors import InvalidInput, NotFound
from ppd_serve.keys import EVERYTHING, Scope, digest
from ppd_serve.storage.store import Store
from tests.storage.places import Place


def test_a_key_is_found_by_its_digest(store: Store, place: Place) -> None:
    made, key = store.create_key("app", name="phone", rate_per_minute=60, concurrency=2)
    place.clock.pass_hours(1)
    plain, _ = store.create_key("app", scopes=[Scope.READ])
    assert key.startswith(f"ppd_{made.id}_") and len(key) > 50
    assert store.keys()[digest(key)] == made
    assert list(store.keys().values()) == [made, plain]
    assert (made.scopes, plain.scopes) == (EVERYTHING, frozenset({Scope.READ}))
    assert (made.name, made.rate_per_minute, made.concurrency) == ("phone", 60, 2)
    assert (plain.name, plain.rate_per_minute, plain.concurrency) == ("", None, None)


def test_no_two_keys_are_the_same(store: Store) -> None:
    keys = [store.create_key("app") for _ in range(10)]
    assert len({made.id for made, _ in keys}) == len({key for _, key in keys}) == 10


def test_the_key_itself_is_nowhere(place: Place, tmp_path: Path) -> None:
    store = place.open()
    made, key = store.create_key("app", name="phone")
    secret = key.removeprefix(f"ppd_{made.id}_")
    with store._database.read() as session:
        rows = session.connection().exec_driver_sql("SELECT * FROM api_keys").all()
    assert rows and secret not in str(rows)
    assert secret not in repr(made) + repr(store.keys())
    store.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_revoking_is_kept_and_may_be_done_twice(place: Place) -> None:
    store = place.open()
    made, key = store.create_key("app")
    _, other = store.create_key("app")
    now = place.clock()
    assert store.keys()[digest(key)].is_live(now)
    store.revoke_key(made.id)
    place.clock.pass_hours(1)
    store.revoke_key(made.id)
    store.close()
    again = place.open()
    assert again.keys()[digest(key)].revoked == now
    assert not again.keys()[digest(key)].is_live(now)
    assert again.keys()[digest(other)].is_live(now)
    with pytest.raises(NotFound):
        again.revoke_key("nobody")
    again.close()


def test_a_key_may_end_by_itself(store: Store, place: Place) -> None:
    made, _ = store.create_key("app", days=0.5)
    assert made.is_live(place.clock() + 11.9 * 3600)
    assert not made.is_live(place.clock() + 12 * 3600)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"project": "a/b"}, "project"),
        ({"project": ""}, "project"),
        ({"project": "ä"}, "project"),
        ({"project": "-a"}, "project"),
        ({"project": "a" * 65}, "project"),
        ({"scopes": []}, "scope"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"concurrency": -1}, "concurrency"),
        ({"days": 0}, "days"),
    ],
)
def test_what_is_no_key(store: Store, wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store.create_key(**{"project": "app", **wrong})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert store.keys() == {}
