"""A twin's training in miniature: choices that went through ``prepare``, and one step on them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from ppd_serve.release import Release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS
from tests.training.shards import row
from training.data.choices import choice_of
from training.data.prepare import prepare
from training.recipes import Recipe
from training.run import Job, train

PEOPLE, PAIRS = 6, 16  # fewer than four pairs each: readings are planted, no VLM is needed


def prepare_with_planted_readings(release: Release, path: Path) -> None:
    """``path/train`` and ``path/dev``."""
    for number, split in enumerate(("train", "dev")):
        choices = [choice_of(row(n, user=n % PEOPLE)) for n in range(PAIRS)]
        made = prepare(choices, release, path / "prepared" / split)
        rng = np.random.default_rng(number)
        shape = (PEOPLE, EMBEDDING_ROWS, EMBEDDING_DIM)
        planted = dataclasses.replace(
            made,
            readings=rng.standard_normal(shape, np.float32),
            reading_user=np.arange(PEOPLE),
            reading_pairs=np.full(PEOPLE, 4),
        )
        planted.save(path / split)


def one_step(release: Release, data: Path, out: Path, how: Recipe) -> None:
    assert train(Job(how, str(data), release.path, out, out / "work"))
    report = json.loads((out / "report.json").read_text())
    assert math.isfinite(report["last"][0]["loss"])
    assert math.isfinite(report["held_out"]["improvement"]["mean"])
