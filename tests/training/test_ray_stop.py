"""SIGTERM to the command of a Ray Train job: its workers save what another call goes on from."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS, make_tiny_release
from tests.training.planted import planted_backbone, planted_choices
from training.run import STOP
from training.studio_commands import TO_BE_CONTINUED

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


@pytest.mark.slow
def test_sigterm_to_a_ray_job_leaves_a_checkpoint(tmp_path: Path) -> None:
    release, made = make_tiny_release(tmp_path / "release"), planted_choices(planted_backbone())
    rng = np.random.default_rng(0)
    dataclasses.replace(
        made,
        latents=rng.standard_normal((len(made.latents), 4, 4, 4), np.float32),
        readings=np.resize(made.readings, (len(made.readings), EMBEDDING_ROWS, EMBEDDING_DIM)),
    ).save(tmp_path / "data" / "train")
    out = tmp_path / "out"

    def started(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "training", "train", "--objective", "dpo",
                "--conditioning", "user", "--data", str(tmp_path / "data"), "--out", str(out),
                "--release", str(release.path), "--steps", "100000", "--batch", "4",
                "--workers", "2", "--recipe", "studio-ppd", *more,
            ],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    process, log = started(), out / "dpo-user.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not (log.exists() and log.stat().st_size):  # a hundred steps; no checkpoint is due yet
        assert time.monotonic() < deadline, "never trained"
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(process.communicate()[0])
    assert not (out / "dpo-user.pt").exists()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == TO_BE_CONTINUED, said
    assert "interrupted and saved" in said and not (out / STOP).exists()
    state = torch.load(out / "dpo-user.pt", weights_only=True)
    assert 100 <= state["step"] < 100_000

    another = started("--seed", "9").communicate(timeout=LIMIT_S)[0]
    assert "seed was 0, is 9" in another and "Usage" in another  # told as one process tells it
