"""The content judge learns what a picture shows, and is kept as it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.training.studio import small_pool
from training.data.world import CAPTIONS, SETTINGS, SIZES, SUBJECTS
from training.evaluate.content import (
    PARTS,
    ContentJudge,
    content_right,
    content_stage,
    load_judge,
    save_judge,
)


def new_judge() -> ContentJudge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContentJudge(width=8)


def test_one_group_of_logits_per_part() -> None:
    logits = new_judge()(torch.zeros(2, 3, 128, 128))
    assert [x.shape[1] for x in logits] == [len(SIZES), len(SUBJECTS), len(SETTINGS)]
    assert PARTS == ("size", "subject", "setting")


def test_it_learns_and_tells_right_from_wrong(tmp_path: Path) -> None:
    pool = small_pool(64, captions=12)
    judge = new_judge()
    stage = content_stage(judge, pool, tmp_path, steps=60)
    stage.warmup = 5
    assert stage.run()
    judge.eval()
    right = content_right(judge, pool.images, pool.captions)
    assert right.shape == (64, 3)
    assert right[:, PARTS.index("setting")].mean() > 0.6  # six settings: chance is 1/6
    wrong = np.array([CAPTIONS.index(c._replace(setting="snow" if c.setting != "snow" else "lake"))
                      for c in (CAPTIONS[i] for i in pool.captions)])  # fmt: skip
    assert content_right(judge, pool.images, wrong)[:, 2].mean() < 0.3


def test_a_stored_judge_judges_the_same(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        judge = ContentJudge().eval()
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors")
    images = torch.rand(4, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        for a, b in zip(judge(images), loaded(images), strict=True):
            torch.testing.assert_close(a, b, atol=2e-2, rtol=1e-2)
