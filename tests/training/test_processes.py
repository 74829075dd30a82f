"""Several processes are one, and a killed one goes on where it was: real processes, over gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.run_planted import main

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


def started(out: Path, *arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*launcher, "-m", "tests.training.run_planted", str(out), *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def final(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "final.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto", "rpo"])
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path, objective: str) -> None:
    """Float64, 20 steps: KTO's reference point and RPO's cross pairs reach across processes."""
    two = started(tmp_path / "two", objective, "8", "20", processes=2)
    main(str(tmp_path / "one"), objective, "8", "20")
    said = two.communicate(timeout=LIMIT_S)[0]
    assert two.returncode == 0, said
    one_by_one = final(tmp_path / "one")
    assert any(p.abs().max() > 1e-3 for k, p in one_by_one.items() if "to_v_ip" in k)
    for name, parameter in final(tmp_path / "two").items():
        torch.testing.assert_close(parameter, one_by_one[name], atol=1e-8, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto", "rpo"])
def test_killed_in_the_middle_and_resumed_has_the_same_weights(
    tmp_path: Path, objective: str
) -> None:
    out, steps = tmp_path / "killed", 120
    process = started(out, objective, "8", str(steps), "0")
    deadline = time.monotonic() + LIMIT_S
    while not _steps_done(out) >= 5:
        assert process.poll() is None and time.monotonic() < deadline, "never saved a step"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert 5 <= _steps_done(out) < steps
    main(str(out), objective, "8", str(steps))
    main(str(tmp_path / "straight"), objective, "8", str(steps))
    straight = final(tmp_path / "straight")
    for name, parameter in final(out).items():
        assert torch.equal(parameter, straight[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_asked_to_stop_it_saves_first(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "dpo", "8", "100000", "0.5")
    deadline = time.monotonic() + LIMIT_S
    while not _steps_done(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline, "never saved a step"
    before = _steps_done(tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0 and "stopped" in said
    assert before <= _steps_done(tmp_path) < 100_000


def _steps_done(out: Path) -> int:
    """What the checkpoint says; it is replaced whole, so it can always be read."""
    path = out / "planted.pt"
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0
