"""The index with FAISS under it: tiers of a few users, that train and fold in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from ppd_serve.preferences import index_cells, index_search
from ppd_serve.preferences.index import UserIndex
from ppd_serve.preferences.index_cells import Cells
from tests.preferences.test_index import IndexMachine

DIM = 16


class TieredMachine(IndexMachine):
    """Cells from four users on. They may miss a neighbour; all that is answered is still true."""

    exact = False

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(index_search, "EXACT_UP_TO", 3)
        self.patch.setattr(index_search, "FOLD_AT", 2)

    @rule()
    def settle(self) -> None:
        self.index.settle()

    def teardown(self) -> None:
        self.index.settle()
        self.patch.undo()


TestTieredMachine = TieredMachine.TestCase
TestTieredMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)


@pytest.fixture
def small_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_search, "EXACT_UP_TO", 500)
    monkeypatch.setattr(index_search, "FOLD_AT", 100)


def tastes(count: int, seed: int) -> np.ndarray:
    """``[count, 1, DIM]``: some of everything around each of forty tastes."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    values = centres[random.integers(0, 40, count)] + 0.5 * random.standard_normal((count, DIM))
    return values[:, None].astype(np.float32)


def filled(values: np.ndarray) -> UserIndex:
    index = UserIndex("space", 1, DIM)
    for number, value in enumerate(values):
        index.put(f"p/{number}", 1, value)
    index.settle()
    return index


def cells_of(index: UserIndex, project: str = "p") -> Cells | None:
    return index._projects[project].neighbours._cells


def recall(index: UserIndex, truth: dict[str, np.ndarray], queries: np.ndarray) -> float:
    """Of the ten nearest, against brute force over ``truth``."""
    names = [*truth]
    keys = np.stack([truth[name][0] for name in names]).astype(np.float64)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    found = 0
    for query in queries[:, 0]:
        best = np.argsort(-(keys @ query))[:10]
        answer = index.search(query, 10, "p/")
        assert len(answer) == 10
        for name, cosine in answer:
            assert cosine == pytest.approx(
                float(truth[name][0] @ query)
                / float(np.linalg.norm(truth[name][0]) * np.linalg.norm(query)), abs=1e-5,
            )  # fmt: skip
        found += len({names[i] for i in best} & {name for name, _ in answer})
    return found / 10 / len(queries)


@pytest.mark.usefixtures("small_tiers")
def test_cells_follow_every_change() -> None:
    values, queries = tastes(3000, 1), tastes(40, 2)
    index = filled(values)
    truth = {f"p/{number}": value for number, value in enumerate(values)}
    assert cells_of(index) is not None
    assert recall(index, truth, queries) >= 0.95
    for seed, changes in ((3, 60), (4, 700), (5, 2500)):  # beside the cells, folded in, retrained
        for number, value in zip(range(changes), tastes(changes, seed), strict=True):
            if number % 3 == 0:
                index.delete(f"p/{number}")
                truth.pop(f"p/{number}", None)
            else:
                index.put(f"p/{number}", seed, value)
                truth[f"p/{number}"] = value
                if number % 9 == 1:  # at once
                    assert index.search(value[0], 1, "p/")[0][0] == f"p/{number}"
        assert recall(index, truth, queries) >= 0.95
        index.settle()
        assert recall(index, truth, queries) >= 0.95
    assert len(cells_of(index) or ()) == pytest.approx(len(truth), abs=100)


@pytest.mark.usefixtures("small_tiers")
def test_who_left_is_in_nobodys_way_before_the_cells_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cells, "_MOST", 1)  # open all cells: they miss nobody
    monkeypatch.setattr(index_cells, "_WANTED", 2)
    values = tastes(1000, 1)
    values[:300] = values[0] + 0.01 * tastes(300, 2)  # all the nearest to the first
    index = filled(values)
    monkeypatch.setattr(index_search, "FOLD_AT", 10_000)
    for number in range(1, 200):
        index.put(f"p/{number}", 2, -values[0])
    for number in range(200, 300):
        index.delete(f"p/{number}")
    keys = values[300:, 0] / np.linalg.norm(values[300:, 0], axis=1, keepdims=True)
    best = np.argsort(-(keys @ values[0, 0]))[:10] + 300
    found = {name for name, _ in index.search("p/0", 10, "p/")}
    assert found == {f"p/{number}" for number in best}


def test_who_comes_while_cells_are_trained_does_not_open_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are looked at beside the cells, so cells that do not know them miss nothing."""
    monkeypatch.setattr(index_search, "EXACT_UP_TO", 2000)
    monkeypatch.setattr(index_search, "FOLD_AT", 10_000)
    monkeypatch.setattr(index_cells, "_MOST", 1)
    index, late = UserIndex("space", 1, DIM), enumerate(tastes(500, 2), 10_000)
    sorts_in = Cells.replace

    def replace(*args: object) -> None:
        for number, value in late:
            index.put(f"p/{number}", 1, value)
        sorts_in(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Cells, "replace", replace)
    for number, value in enumerate(tastes(2001, 1)):
        index.put(f"p/{number}", 1, value)
    index.settle()
    cells = cells_of(index)
    assert cells is not None and len(index) == 2501
    assert cells._faiss.nprobe < cells._faiss.nlist / 2


@pytest.mark.usefixtures("small_tiers")
def test_one_project_is_found_whole_beside_a_large_one() -> None:
    index = filled(tastes(1000, 1))
    for number, value in enumerate(tastes(12, 2)):
        index.put(f"q/{number}", 1, -value)
    found = index.search(tastes(1, 1)[0, 0], 20, "q/")
    assert {name for name, _ in found} == {f"q/{number}" for number in range(12)}
    assert len(index.search(tastes(1, 1)[0, 0], 1012)) == 1012  # more than any cells propose
    assert cells_of(index) is not None and cells_of(index, "q") is None


@pytest.mark.usefixtures("small_tiers")
def test_cells_go_when_few_are_left_or_none_can_be_found() -> None:
    index = filled(tastes(1000, 1))
    for number in range(990):
        index.delete(f"p/{number}")
        if number % 100 == 0:
            index.settle()
    for number, value in enumerate(tastes(600, 2)):
        index.put(f"p/{990 + number % 10}", 2 + number, value)
    index.settle()
    assert cells_of(index) is None and len(index.search(np.ones(DIM), 20)) == 10

    average = filled(np.zeros((1000, 1, DIM), np.float32))
    assert cells_of(average) is None and average.search(np.ones(DIM), 5) == []


def test_background_work_that_fails_leaves_the_answers_right(
    small_tiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(index_search.Cells, "replace", no_memory)
    values = tastes(1000, 1)
    index = filled(values)
    truth = {f"p/{number}": value for number, value in enumerate(values)}
    assert recall(index, truth, tastes(10, 2)) == 1


@pytest.mark.usefixtures("small_tiers")
def test_writers_and_readers_at_once_agree_with_a_dict() -> None:
    """Each writer has users of its own and a dict of them, and reads what it wrote. A reader sees
    whole embeddings that fit their version, and cosines that some version has."""
    index, wrong = UserIndex("space", 1, DIM), []
    models: list[dict[str, tuple[int, np.ndarray]]] = [{} for _ in range(3)]
    done = threading.Event()

    def value(version: int) -> np.ndarray:  # all numbers but the first tell the version
        row = np.full((1, DIM), version, np.float32)
        row[0, 0] = 1
        return row

    def cosines() -> Iterator[float]:
        for version in range(1, 8):
            row = value(version)[0].astype(np.float64)
            yield float(row.sum() / np.linalg.norm(row) / DIM**0.5)

    possible = [*cosines()]

    def write(writer: int) -> None:
        random, model = np.random.default_rng(writer), models[writer]
        for _ in range(4000):
            name = f"p/{writer}-{random.integers(400)}"
            version = model[name][0] + 1 if name in model else 1
            if version == 8 or random.random() < 0.05:
                if index.delete(name) != (model.pop(name, None) is not None):
                    wrong.append(name)
            else:
                model[name] = (version, value(version))
                if not index.put(name, *model[name]):
                    wrong.append(name)
            stored = index.get(name)
            if (stored and stored[0]) != (model[name][0] if name in model else None):
                wrong.append((name, stored))

    def read(reader: int) -> None:
        random = np.random.default_rng(reader)
        while not done.is_set():
            stored = index.get(f"p/{random.integers(3)}-{random.integers(400)}")
            if stored is not None and not np.array_equal(stored[1], value(stored[0])):
                wrong.append(stored)
            for name, cosine in index.search(np.ones(DIM, np.float32), 3, "p/"):
                if min(abs(cosine - one) for one in possible) > 1e-6:
                    wrong.append((name, cosine))

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    index.settle()
    assert not wrong
    expected = {name: found for model in models for name, found in model.items()}
    assert len(index) == len(expected) and cells_of(index) is not None
    for name, (version, values) in expected.items():
        stored = index.get(name)
        assert stored is not None and stored[0] == version
        np.testing.assert_array_equal(stored[1], values)
    for name, _ in index.search(np.ones(DIM), 50):
        assert name in expected
