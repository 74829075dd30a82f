"""The user index, while it is small, against a dict and brute force."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ppd_serve.preferences.index import UserIndex

ROWS, DIM = 2, 5
IDS = st.sampled_from([f"{project}/{name}" for project in "pq" for name in "abcde"])
SEEDS = st.integers(0, 2**32 - 1)


def embedding(seed: int) -> np.ndarray:
    """One in eight is the average user; sizes differ by many orders of magnitude."""
    random = np.random.default_rng(seed)
    if seed % 8 == 0:
        return np.zeros((ROWS, DIM), np.float32)
    scale = 10.0 ** random.integers(-18, 18)
    return (scale * random.standard_normal((ROWS, DIM))).astype(np.float32)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    a, b = left.mean(0, dtype=np.float64), right.mean(0, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


class IndexMachine(RuleBasedStateMachine):
    """Whatever is done in whatever order, the index says what a dict and brute force say."""

    exact = True

    def __init__(self) -> None:
        super().__init__()
        self.index = UserIndex("space", ROWS, DIM)
        self.truth: dict[str, tuple[int, np.ndarray]] = {}

    @rule(id=IDS, version=st.integers(0, 5), seed=SEEDS)
    def put(self, id: str, version: int, seed: int) -> None:
        newer = id not in self.truth or version > self.truth[id][0]
        assert self.index.put(id, version, embedding(seed)) is newer
        if newer:
            self.truth[id] = (version, embedding(seed))

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        assert self.index.delete(id) is (self.truth.pop(id, None) is not None)

    @rule(
        seed=st.integers(0, 2**32 - 1),
        id=IDS,
        by_id=st.booleans(),
        k=st.integers(0, 12),
        prefix=st.sampled_from(["", "p/", "q/", "none/"]),
    )
    def search(self, seed: int, id: str, by_id: bool, k: int, prefix: str) -> None:
        if by_id and id not in self.truth:
            with pytest.raises(KeyError):
                self.index.search(id, k)
            return
        query = self.truth[id][1] if by_id else embedding(seed)
        others = {
            other: cosine(query, values)
            for other, (_, values) in self.truth.items()
            if values.any() and query.any() and other.startswith(prefix)
            if not (by_id and other == id)
        }
        found = self.index.search(id if by_id else query.mean(0), k, prefix)
        assert len(found) == min(k, len(others)) == len({name for name, _ in found})
        assert found == sorted(found, key=lambda item: (-item[1], item[0]))
        for name, score in found:
            assert score == pytest.approx(others[name], abs=1e-5)
        if self.exact:
            best = sorted(others.values(), reverse=True)[: len(found)]
            np.testing.assert_allclose([score for _, score in found], best, atol=1e-5)

    @rule()
    def reload(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            self.index.sequence += 1
            self.index.save(directory)
            loaded = UserIndex("space", ROWS, DIM)
            loaded.load(directory)
        assert loaded.sequence == self.index.sequence
        self.index = loaded

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def embeddings_handed_out_are_copies(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.truth)))
        stored = self.index.get(id)
        assert stored is not None
        stored[1][:] = 7.0

    @invariant()
    def says_what_the_dict_says(self) -> None:
        assert len(self.index) == len(self.truth)
        for project in "pq":
            for name in "abcde":
                stored = self.index.get(f"{project}/{name}")
                expected = self.truth.get(f"{project}/{name}")
                if expected is None:
                    assert stored is None
                else:
                    assert stored is not None
                    assert stored[0] == expected[0]
                    assert stored[1].dtype == np.float32
                    np.testing.assert_array_equal(stored[1], expected[1])


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)


@pytest.fixture
def index() -> UserIndex:
    index = UserIndex("space", ROWS, DIM)
    for number in range(1, 8):
        index.put(f"user{number}", 1, embedding(number))
    index.source, index.sequence = "a database", 42
    return index


def test_a_reused_slot_never_answers_for_its_last_owner(index: UserIndex) -> None:
    index.delete("user3")
    index.put("new", 1, embedding(99))
    assert index.get("user3") is None
    names = [name for name, _ in index.search(embedding(3).mean(0), 10)]
    assert "user3" not in names and "new" in names and len(names) == 7


def test_other_prefixes_in_the_way_do_not_shorten_the_answer() -> None:
    index = UserIndex("space", 1, 2)
    for number in range(50):
        index.put(f"p/{number}", 1, np.array([[1, 0.01 * number]]))
    for number in range(3):
        index.put(f"q/{number}", 1, np.array([[-1, 1.0 + number]]))
    found = index.search(np.array([1, 0]), 2, prefix="q/")
    assert [name for name, _ in found] == ["q/2", "q/1"]


def test_deleted_users_do_not_crowd_out_the_distant_ones() -> None:
    index = UserIndex("space", 1, 2)
    for number in range(50):
        index.put(f"gone{number}", 1, np.array([[1, 0.0]]))
    index.put("opposite", 1, np.array([[-1, 0.0]]))
    index.put("average", 1, np.zeros((1, 2)))
    for number in range(50):
        index.delete(f"gone{number}")
    assert index.search(np.array([1, 0]), 3) == [("opposite", -1.0)]


def test_a_prefix_that_is_no_whole_project_is_refused(index: UserIndex) -> None:
    with pytest.raises(ValueError, match="slash"):
        index.search("user1", 3, prefix="use")


def test_deleting_and_putting_reuses_space(index: UserIndex) -> None:
    for number in range(1000):
        index.put(f"guest{number}", 1, embedding(1))
        index.delete(f"guest{number}")
    assert [*index._projects[""].slots.spans()] == [range(8)]


@pytest.mark.parametrize("bad", [np.zeros((ROWS, DIM + 1)), np.full((ROWS, DIM), np.nan)])
def test_what_is_no_embedding_is_refused(index: UserIndex, bad: np.ndarray) -> None:
    with pytest.raises(ValueError):
        index.put("user1", 9, bad)
    assert index.get("user1") is not None and index.get("user1")[0] == 1
