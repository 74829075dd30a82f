from __future__ import annotations

import numpy as np

from ppd_serve.storage.store import Store
from tests.storage.places import pair

VALUES = np.ones((1, 4), np.float32)


def test_who_waits_for_a_reading(store: Store) -> None:
    def names(space: str, after: tuple[str, str] = ("", ""), limit: int = 10) -> list[str]:
        return [f"{u.project}/{u.user_id}" for u in store.unread_users(space, after, limit)]

    store.put_user("p", "without pairs")
    for user_id in ("ann", "bob", "eve"):
        added = store.add_pairs("p", user_id, [pair()])
        assert store.put_embedding(
            "p", user_id, added.incarnation, added.version, "space", VALUES, 1, None
        )
    store.add_pairs("q", "ann", [pair()])
    assert names("space") == ["q/ann"]
    store.add_pairs("p", "bob", [pair()])
    assert names("space") == ["p/bob", "q/ann"]
    assert names("another space") == ["p/ann", "p/bob", "p/eve", "q/ann"]
    assert names("another space", limit=2) == ["p/ann", "p/bob"]
    assert names("another space", ("p", "bob")) == ["p/eve", "q/ann"]
