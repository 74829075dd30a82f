"""torch's workers of an actor: those of the one thread that computes, and no second set. With two,
libgomp lets all of them sleep between operations, and a picture takes 2.5 times as long.

Of the default, as a tiny model's operations are too small to be given to all workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppd_serve.settings import STUDIO

ROOT = Path(__file__).parents[1]
# Threads that stay when an actor has been made, and done its work once (it warms up).
COUNT = """
import json, sys
import psutil, torch
from ppd_serve import actors, settings
release, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)  # makes threads of another pool, which only mobile kernels use
counts = [psutil.Process().num_threads()]
diffuser = actors.Diffuser(release, settings.DiffuserPart(threads=threads))
counts.append(psutil.Process().num_threads())
encoder = actors.Encoder(release, settings.EncoderPart(threads=threads))
counts.append(psutil.Process().num_threads())
print(json.dumps([counts[1] - counts[0], counts[2] - counts[1]]))
"""


@pytest.mark.slow
def test_a_thread_more_is_one_worker_more() -> None:
    def left_by(threads: int) -> list[int]:
        child = subprocess.run(
            [sys.executable, "-c", COUNT, str(STUDIO), str(threads)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr
        found: list[int] = json.loads(child.stdout.splitlines()[-1])
        return found

    alone, many = left_by(1), left_by(3)
    assert [b - a for a, b in zip(alone, many, strict=True)] == [2, 2]
