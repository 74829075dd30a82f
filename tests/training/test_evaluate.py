"""The whole report of the shipped release, with a handful of users: every figure there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.evaluate import interpolation
from training.evaluate.report import write_report
from training.evaluate.run import evaluate

pytestmark = pytest.mark.slow

RELEASE = Path("ppd_serve/assets/studio")


def test_every_figure_is_taken_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolation, "PICTURES", 1)

    report, outcomes, panel = evaluate(
        RELEASE, split="dev", users=4, side_users=2, work=tmp_path, pairs=(1,), scales=(0.0,),
        pool_size=120, adherence_pictures=6, interpolation_pairs=1, against=RELEASE,
    )  # fmt: skip
    write_report(report, outcomes, panel.captions, tmp_path / "report")

    assert set(report["conditions"]) == {
        "personal", "mismatched", "1 pairs", "scale 0", "population", "true taste",
        "Bayes, 4 pairs",
    }  # fmt: skip
    assert set(report["personal_minus"]) == {"mismatched", "population"}
    at_zero, base = outcomes["scale 0"], outcomes["base"]
    assert np.abs(at_zero.images.astype(int) - base.images[:2]).mean() < 1  # as if nobody asked
    assert np.abs(outcomes["personal"].images.astype(int) - base.images).mean() > 3
    assert report["adherence"]["mean"]["difference"]["count"] == 6
    assert report["identification"]["users"] == 2
    assert report["interpolation"]["pairs"] == 1
    assert len(report["interpolation"]["mean_reward"]) == 5
    assert report["artefacts"]["base"] > 0
    itself = report["against"]  # draws the same pictures
    assert itself["beaten"]["value"] == 0.5 and itself["minus"]["value"] == 0
    assert itself["release"].startswith("studio ")
    page = (tmp_path / "report" / "report.md").read_text()
    for told in (
        "adherence, personal", "users found again", "artefact score", "between two users",
        "personal minus population", "share of the true-taste gain", "against studio",
    ):  # fmt: skip
        assert told in page, told
    assert json.loads((tmp_path / "report" / "report.json").read_text())["users"] == 4
    assert (tmp_path / "report" / "sheet.png").exists()
