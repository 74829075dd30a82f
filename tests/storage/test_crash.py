"""A process that dies at any instant loses nothing that it acknowledged."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing

import pytest

from ppd_serve.errors import Conflict
from ppd_serve.storage.store import Idempotency
from tests.storage.places import Place, pair

P = "default"

WRITER = """
import sys, threading
from ppd_serve.storage.store import Store
from tests.storage.places import pair

store = Store.open(sys.argv[1], sys.argv[2])
lock = threading.Lock()

def write(thread):
    number = 0
    while True:
        number += 1
        added = store.add_pairs("default", f"user{thread}", [pair(f"{thread}.{number}")])
        with lock:
            print(f"user{thread}", added.pair_ids[0], flush=True)

for thread in range(3):
    threading.Thread(target=write, args=(thread,)).start()
"""

INTERRUPTED = """
import os, sys
from ppd_serve.storage.store import Idempotency, Store
from tests.storage.places import pair

store = Store.open(sys.argv[1], sys.argv[2])
queued = store.create_generation("default", {"prompt": "x"}).generation_id
running = store.create_generation("default", {}).generation_id
store.set_generation("default", running, "running")
store.add_pairs("default", "ann", [pair()], Idempotency("route", "pairs", "hash"))
store.begin_idempotent("default", Idempotency("route", "draw", "hash"))
print(queued, running, flush=True)
if sys.argv[3] == "die":
    os._exit(1)
sys.stdin.read()
"""


def start(script: str, place: Place, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, place.database_url, place.blob_url, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("lines", [5, 40])
def test_every_acknowledged_pair_survives_kill_9(place: Place, lines: int) -> None:
    with start(WRITER, place) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.readlines()  # what it had said before it died
    whole = [line for line in acknowledged if line.endswith("\n")]
    store = place.open()
    for user_id in ("user0", "user1", "user2"):
        ids = [line.split()[1] for line in whole if line.startswith(user_id)]
        if not ids:
            continue
        listed = store.list_pairs(P, user_id, limit=10_000).pairs
        assert [p.pair_id for p in listed][: len(ids)] == ids
        loaded = store.load_pairs(P, user_id)
        user = store.get_user(P, user_id)
        assert len(loaded.pairs) == user.pairs_total == user.version == len(listed)
        for stored in loaded.pairs:
            name = stored.prompt.removeprefix("prompt ")
            assert stored.preferred == f"{name} preferred".encode()
    store.sweep()
    for user_id in ("user0", "user1", "user2"):
        store.delete_user(P, user_id)
    assert {name for name in place.blobs() if not name.endswith(".part")} == set()
    store.close()


def test_work_of_a_dead_process_is_released(place: Place) -> None:
    with start(INTERRUPTED, place, "die") as process:
        generation_ids = process.communicate()[0].split()
    with closing(place.open()) as store:
        for generation_id in generation_ids:
            record = store.get_generation(P, generation_id)
            assert record.state == "failed" and record.error is not None
            assert record.error["type"] == "interrupted"
        assert store.begin_idempotent(P, Idempotency("route", "draw", "hash")) is None
        again = store.add_pairs(P, "ann", [pair()], Idempotency("route", "pairs", "hash"))
        assert again.replayed and again.answer is None and again.pairs_total == 1


def test_work_of_a_live_process_is_left_alone_until_it_dies(place: Place) -> None:
    with start(INTERRUPTED, place, "live") as process:
        assert process.stdout is not None
        generation_ids = process.stdout.readline().split()
        with closing(place.open()) as store:
            with pytest.raises(Conflict):
                store.begin_idempotent(P, Idempotency("route", "draw", "hash"))
            assert store.sweep().interrupted == 0
            assert store.get_generation(P, generation_ids[0]).state == "queued"
            process.kill()
            process.wait()
            interrupted = 0
            while not interrupted:  # PostgreSQL notices the closed connection in its own time
                interrupted = store.sweep().interrupted
            assert interrupted == 2
            assert store.begin_idempotent(P, Idempotency("route", "draw", "hash")) is None
