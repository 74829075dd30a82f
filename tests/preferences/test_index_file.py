"""The file of the user index against everything that tears, kills and writes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ppd_serve.preferences.index import IndexFileError, UserIndex
from ppd_serve.preferences.index_storage import Slots, Users

ROWS, DIM = 2, 5
ROOT = Path(__file__).parents[2]


def embedding(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture
def index() -> UserIndex:
    index = UserIndex("space", ROWS, DIM)
    for number in range(1, 8):
        index.put(f"{'pq'[number % 2]}/user{number}", number, embedding(number))
    index.source, index.sequence = "a database", 42
    return index


def loaded_from(directory: Path) -> UserIndex:
    loaded = UserIndex("space", ROWS, DIM)
    loaded.load(directory)
    return loaded


def test_a_large_index_with_holes_comes_back_as_it_was(tmp_path: Path) -> None:
    index = UserIndex("space", ROWS, DIM)
    values = np.random.default_rng(0).standard_normal((9000, ROWS, DIM)).astype(np.float32)
    for number, value in enumerate(values):
        index.put(f"{'pq'[number % 2]}/{number}", number, value)
    for number in range(0, 9000, 7):
        index.delete(f"{'pq'[number % 2]}/{number}")
    index.save(tmp_path)
    loaded = loaded_from(tmp_path)
    assert len(loaded) == len(index)
    for number, value in enumerate(values):
        stored = loaded.get(f"{'pq'[number % 2]}/{number}")
        if number % 7 == 0:
            assert stored is None
        else:
            assert stored is not None and stored[0] == number
            np.testing.assert_array_equal(stored[1], value)
    assert loaded.search(values[1].mean(0), 5) == index.search(values[1].mean(0), 5)
    assert loaded.put("p/0", 1, values[0]) and loaded.delete("p/2")  # it lives on


def test_a_file_cut_anywhere_or_with_one_bit_flipped_is_refused(
    index: UserIndex, tmp_path: Path
) -> None:
    path = index.save(tmp_path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    broken = [whole[:end] for end in (0, 1, 31, 32, 40, len(whole) // 2, len(whole) - 1)]
    for place in random.integers(0, len(whole), 40):
        broken.append(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(IndexFileError):
            index.load(tmp_path)
    assert len(index) == 7  # a refused file has changed nothing


def test_a_file_of_another_space_or_shape_or_none_is_refused(
    index: UserIndex, tmp_path: Path
) -> None:
    index.save(tmp_path)
    others = [("other", ROWS, DIM), ("space", ROWS + 1, DIM), ("space", ROWS, DIM + 1)]
    for space, rows, dim in others:
        with pytest.raises(IndexFileError):
            UserIndex(space, rows, dim).load(tmp_path)
    with pytest.raises(IndexFileError):
        index.load(tmp_path / "nowhere")


def test_a_save_that_fails_leaves_the_old_file(
    index: UserIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.save(tmp_path)
    index.put("late", 1, embedding(9))

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_full)
        with pytest.raises(OSError):
            index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    loaded = UserIndex("space", ROWS, DIM)
    loaded.load(tmp_path)
    assert len(loaded) == 7 and (loaded.source, loaded.sequence) == ("a database", 42)


# Saves one state, then another, and is killed at one moment of the second save.
KILLED = """
import os, signal, sys
import numpy as np
from ppd_serve.preferences.index import UserIndex
from ppd_serve.preferences.index_storage import Slots

moment, directory = sys.argv[1:]
index = UserIndex("space", 2, 5)
for number in range(5000):
    index.put(f"user{number}", 1, np.full((2, 5), number + 1))
index.sequence = 1
index.save(directory)
for number in range(5000):
    index.put(f"user{number}", 2, np.full((2, 5), -number - 1))
index.sequence = 2

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def some_users(self, users=Slots.users):
    yield next(users(self))
    die()

if moment == "written half":
    Slots.users = some_users
elif moment == "written, not synced":
    os.fsync = die
elif moment == "synced, not moved":
    os.replace = die
else:  # moved, the directory not synced
    replace = os.replace
    os.replace = lambda *paths: (replace(*paths), setattr(os, "fsync", die))
index.save(directory)
"""


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("written half", 1), ("written, not synced", 1), ("synced, not moved", 1), ("moved", 2)],
)
def test_a_process_killed_in_a_save_leaves_one_whole_state(
    tmp_path: Path, moment: str, expected: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == -signal.SIGKILL
    loaded = loaded_from(tmp_path)
    assert (len(loaded), loaded.sequence) == (5000, expected)
    for number in range(5000):
        stored = loaded.get(f"user{number}")
        assert stored is not None and stored[0] == expected
        assert (stored[1] == (number + 1) * (1 if expected == 1 else -1)).all()
    loaded.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["users.index"]  # nothing is left over


def while_saving(monkeypatch: pytest.MonkeyPatch, done: Iterator[object]) -> None:
    """Advance ``done`` whenever a save has read some users."""
    users = Slots.users

    def read(self: Slots) -> Iterator[Users]:
        for some in users(self):
            yield some
            next(done, None)

    monkeypatch.setattr(Slots, "users", read)


def test_who_is_deleted_during_a_save_is_not_in_the_file(
    index: UserIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deletions() -> Iterator[object]:
        for number in (3, 4):
            yield index.delete(f"{'pq'[number % 2]}/user{number}")

    while_saving(monkeypatch, deletions())
    index.save(tmp_path)
    loaded = loaded_from(tmp_path)
    assert len(loaded) == 5 and loaded.get("q/user3") is None and loaded.get("p/user4") is None
    assert len(list(tmp_path.iterdir())) == 1


def test_who_is_put_during_a_save_comes_after_its_sequence(
    index: UserIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def puts() -> Iterator[object]:
        for number in range(1, 8):
            yield index.put(
                f"{'pq'[number % 2]}/user{number}", 50 + number, embedding(-number % 99)
            )
            index.sequence += 1

    while_saving(monkeypatch, puts())
    index.save(tmp_path)
    loaded = loaded_from(tmp_path)
    assert loaded.sequence == 42
    for number in range(1, 8):  # told again what came after, it ends where the other is
        name = f"{'pq'[number % 2]}/user{number}"
        stored, now = loaded.get(name), index.get(name)
        assert stored is not None and now is not None
        version, values = stored
        expected = embedding(number) if version == number else now[1]
        np.testing.assert_array_equal(values, expected)
        loaded.put(name, *now)
        assert loaded.get(name)[0] == now[0]
