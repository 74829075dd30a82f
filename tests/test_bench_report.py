"""Figures keep their spread and their goals, from a benchmark to the merged report."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import Figure, about, merge, ratios, spread, write


def test_a_spread_is_the_median_between_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 100.0]) == (3.0, 2.0, 4.0, "")
    assert spread([7.0]) == (7.0, None, None, "")
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]).value == 2.0


def test_goals() -> None:
    assert Figure(2.2, goal="≥ 2.2").reached is True
    assert Figure(1.16, goal="≤ 1.15").reached is False
    assert Figure(1.0).reached is None


def test_sections_become_one_report(tmp_path: Path) -> None:
    where = about() | {"steps": 20}
    write(tmp_path / "b.json", where, {"times": {"faster": Figure(2.5, 2.0, 3.0, "≥ 2.2")}})
    write(tmp_path / "a.json", where, {"sizes": {"users": 1_000_000}, "ms": {"slow": 0.123456}})

    merge(tmp_path)
    merge(tmp_path)  # its own files are no sections

    sections = json.loads((tmp_path / "report.json").read_text())
    assert list(sections) == ["a", "b"]
    assert {"machine", "commit", "versions", "when", "load", "steps"} <= sections["a"].keys()
    assert sections["a"]["tables"] == {"sizes": {"users": {"value": 1_000_000}},
                                       "ms": {"slow": {"value": 0.1235}}}  # fmt: skip
    assert sections["b"]["tables"]["times"]["faster"] == {
        "value": 2.5, "quartiles": [2.0, 3.0], "goal": "≥ 2.2", "reached": True,
    }  # fmt: skip
    told = (tmp_path / "report.md").read_text()
    assert told.index("## a") < told.index("## b")
    assert "| faster | 2.5 (2–3) | ≥ 2.2 ✓ |" in told
    assert "| slow | 0.1235 |" in told
