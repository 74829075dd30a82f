"""A working directory where stages leave their results: a run can stop anywhere and go on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.budget import Budget
from training.data.pool import Pool, load_pool
from training.stage import Stage


class OutOfTime(Exception):
    """The given minutes are over; everything so far is in the working directory."""


class Workbench:
    """Trains stages and keeps what they make.

    ``start``: a release whose latents and eyes are kept, and whose base, decoder and language part
    train on from where they are, so that the shipped default can be raised step by step.
    """

    def __init__(
        self,
        work: Path,
        budget: Budget,
        *,
        seed: int = 0,
        threads: int | None = None,
        start: Path | None = None,
        bf16: bool = False,
        device: str = "cpu",
        minutes: float | None = None,
    ) -> None:
        self.work, self.budget, self.seed, self.start = work, budget, seed, start
        self.bf16, self.device = bf16, device
        self.worked = False  # a call gets at least one thing done, however short its time
        self.spent: list[Path] = []  # checkpoints that nobody needs once their result is written
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        if threads:
            torch.set_num_threads(threads)
        work.mkdir(parents=True, exist_ok=True)

    def train(self, stage: Stage) -> None:
        """To the end, or as far as the minutes go."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        self.worked = True
        if not stage.run(seconds=left):
            raise OutOfTime(stage.name)
        self.spent.append(stage.checkpoint)

    def or_later(self, name: str) -> None:
        """Leave what cannot be interrupted to the next call, if this one is out of time."""
        if self.worked and self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime(name)
        self.worked = True

    def pool(self, name: str = "train") -> Pool:
        count = self.budget.pool if name == "train" else self.budget.dev_pool
        return load_pool(self.work / "pool", name, count, workers=os.cpu_count() or 1)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file or directory ``name``; unless it is there, ``make`` writes it, all or nothing.

        Each result has its own random numbers, whether it is made alone or on the way to another.
        """
        path = self.work / name
        if not path.exists():
            draft = path.with_name(f"draft-{name}")
            shutil.rmtree(draft, ignore_errors=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                make(draft)
            draft.rename(path)
            while self.spent:
                self.spent.pop().unlink(missing_ok=True)  # nothing to train writes none
        return path


def load(model: Any, path: Path) -> Any:
    """A model as it ships, in float32 again."""
    return model.from_pretrained(path).float().eval()
