"""A Ray that does not start: tried again, and nothing of it is left. A stand-in plays Ray here."""

from __future__ import annotations

import subprocess
from typing import Any

import psutil
import pytest

from ppd_serve import local_ray


class Ray:
    """Begins a process at every start; the first ``failures`` starts then fail as Ray's do."""

    def __init__(self, failures: int) -> None:
        self.failures, self.begun = failures, list[int]()

    def init(self, *args: Any, **options: Any) -> None:
        self.begun.append(subprocess.Popen(["sleep", "600"]).pid)
        if len(self.begun) <= self.failures:
            raise Exception("The current node timed out during startup")


def test_a_start_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(failures=1)
    monkeypatch.setattr(local_ray, "ray", ray)
    local_ray.start_ray("/nowhere")
    first, second = ray.begun
    assert not psutil.pid_exists(first)
    psutil.Process(second).kill()


def test_starts_that_all_fail_are_one_error_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = Ray(failures=99)
    monkeypatch.setattr(local_ray, "ray", ray)
    with pytest.raises(RuntimeError, match="timed out during startup"):
        local_ray.start_ray("/nowhere")
    assert len(ray.begun) > 1
    assert not any(map(psutil.pid_exists, ray.begun))
