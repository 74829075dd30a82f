"""The whole report of the shipped release, with a handful of users: every figure there is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ppd_serve.release import load_release, write_release
from training.evaluate import interpolation
from training.evaluate.report import write_report
from training.evaluate.run import evaluate

pytestmark = pytest.mark.slow

RELEASE = Path("ppd_serve/assets/studio")


def test_every_figure_is_taken_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolation, "PICTURES", 1)
    silent = tmp_path / "silent"  # draws the base, whoever asks
    shutil.copytree(RELEASE, silent)
    weights = silent / "adapter" / "ip_adapter.safetensors"
    save_file({k: np.zeros_like(v) for k, v in load_file(weights).items()}, weights)
    write_release(silent, load_release(RELEASE).manifest.model_copy(update={"version": "0"}))

    report, outcomes, panel = evaluate(
        RELEASE, split="dev", users=4, side_users=2, work=tmp_path, pairs=(1,), scales=(0.0,),
        pool_size=120, adherence_pictures=6, interpolation_pairs=1, against=silent,
    )  # fmt: skip
    write_report(report, outcomes, panel, tmp_path / "report")

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
    over_base = report["conditions"]["personal"]
    found = report["against"]
    assert found["release"] == "studio 0" and found["beaten"] == over_base["win_rate"]
    assert found["minus"]["value"] == over_base["win_rate"]["value"] - 0.5
    assert found["content"] == over_base["content"]
    page = (tmp_path / "report" / "report.md").read_text()
    for told in (
        "adherence, personal", "users found again", "artefact score", "between two users",
        "personal minus population", "share of the true-taste gain", "against studio",
    ):  # fmt: skip
        assert told in page, told
    assert json.loads((tmp_path / "report" / "report.json").read_text())["users"] == 4
    assert (tmp_path / "report" / "sheet.png").exists()
