"""The benchmark runs, and where the index looks at everybody it finds what the benchmark's own
brute force finds."""

from __future__ import annotations

import pytest

from benchmarks.bench_index import KINDS, measure


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_index_has_full_recall(kind: str) -> None:
    figures = measure(kind, 1_000)
    assert figures["recall@10"] == 1
    memory = figures.pop("memory, GB")  # of the whole process, which may have given some back
    assert memory < 1
    assert all(value > 0 for value in figures.values())
