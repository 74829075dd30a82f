"""The report is written whole, whatever the lengths of its conditions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.studio import small_pool
from training.evaluate.report import scales_table, write_report
from training.evaluate.studio import Outcome, new_panel
from training.evaluate.summary import compared


def outcome(count: int) -> Outcome:
    return Outcome(
        np.zeros((count, 128, 128, 3), np.uint8),
        np.zeros((count, 8), np.float32),
        np.zeros(count, np.float32),
        np.ones((count, 3), bool),
    )


def rate(value: float = 0.5) -> dict[str, float]:
    return {"value": value, "low": 0.4, "high": 0.6, "count": 12}


@pytest.mark.parametrize("side", [3, 12])
def test_a_side_condition_may_be_shorter(tmp_path: Path, side: int) -> None:
    report = {
        "release": {"name": "studio", "version": "9"},
        "world": "w",
        "split": "dev",
        "users": 12,
        "base_content": {part: rate() for part in ("size", "subject", "setting")},
        "conditions": {},
        "personal_minus": {"mismatched": rate(0.1)},
        "personal_beats_mismatched": rate(),
        "diversity_kept": 1.0,
    }
    outcomes = {"base": outcome(12), "personal": outcome(12), "true taste": outcome(side)}

    write_report(report, outcomes, new_panel("dev", 12, small_pool(40)), tmp_path)

    assert json.loads((tmp_path / "report.json").read_text())["users"] == 12
    page = (tmp_path / "report.md").read_text()
    assert "50.0 (40.0–60.0)" in page
    assert "personal minus mismatched: +10.0 points (+40.0 to +60.0, n=12)" in page
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > min(10, side) * 128


def test_what_a_scale_costs_is_told_in_a_line() -> None:
    base, ours = outcome(10), outcome(10)
    base.reward[:] = np.arange(10)
    ours.reward[:] = base.reward + 1
    ours.content[0, 1] = False
    table = scales_table({"1": compared(ours, base), "2": compared(base, base)}).splitlines()
    assert table[2].startswith("| 1 | 100.0 (72.2–100.0) | 0.35 | -3.3 points (-10.0 to +0.0")
    assert table[3].startswith("| 2 | 50.0 ")
