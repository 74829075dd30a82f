"""The benchmark runs to its end, small, and both sides of it draw the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.bench_http import main
from tests.tiny_release import make_tiny_release

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_every_figure_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPD_DIFFUSER__THREADS", "1")
    make_tiny_release(tmp_path / "release")
    out = tmp_path / "bench" / "http.json"

    main(turns=1, callers=2, lonely=1, steps=2, arriving=3, release=tmp_path / "release", out=out)

    section = json.loads(out.read_text())
    tables = section["tables"]
    same = tables["that the work is the same: a picture's largest difference, of 255"]
    assert same["the server's from stock's"]["value"] <= (
        1 if section["precision"] == "float32" else 16
    )
    goals = [figure["goal"] for table in tables.values() for figure in table.values()
             if "goal" in figure]  # fmt: skip
    exact = same["the server's from stock's in float32"]
    assert goals == ["≥ 2.2", "≥ 0.8", "≤ 1.15", "≤ 0.06", "≤ 0.15", exact["goal"], "≤ 0"]
    (at_random,) = (tables[title] for title in tables if title.startswith("callers at random"))
    assert at_random["accepted"]["value"] == 3

    report.merge(out.parent)
    assert json.loads((out.parent / "report.json").read_text()) == {"http": section}
    assert "| times faster than stock |" in (out.parent / "report.md").read_text()
