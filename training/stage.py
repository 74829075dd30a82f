"""The loop every training runs in: steps, progress, averaged weights, atomic checkpoints, resume.

A stage owns its modules and its loss; this file owns time. All randomness of step ``i`` comes from
generators seeded by (seed, i), so a resumed run continues as if it had never stopped. On several
processes every one runs the same steps on its share of the batch, and the first one writes.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training import processes
from training.optimizer import Ema, OptimizerName, cosine, new_optimizer

Metrics = dict[str, float]

LOG_EVERY = 100


@dataclass
class Draws:
    """The random numbers of one step, for torch and numpy."""

    torch: torch.Generator
    numpy: np.random.Generator


Loss = Callable[[int, Draws], Iterator[tuple[Tensor, Metrics]]]
"""Yields the step's loss, whole or in parts that add up: each part's gradient is taken before the
next part is asked for, so a batch may be larger than memory."""


class Diverged(RuntimeError):
    """A loss or its gradient was not finite; the last checkpoint is good."""


class OtherRun(ValueError):
    """The checkpoint is of a run with another recipe or other data; it is left as it was."""


def draws(seed: int, step: int) -> Draws:
    rng = np.random.default_rng((seed, step))
    return Draws(torch.Generator().manual_seed(int(rng.integers(2**62))), rng)


@dataclass
class Stage:
    """What to train, for how long, and where the checkpoint lives."""

    name: str
    directory: Path
    modules: dict[str, nn.Module]
    loss: Loss
    steps: int
    learning_rate: float
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    clip: float = 1.0
    warmup: int = 100
    hold: float = 0.4
    bf16: bool = False
    save_every_s: float = 120.0
    peek: Callable[[int], Metrics] | None = None
    peek_every: int = 0
    # What the checkpoint belongs to, as JSON would give it back; empty: whoever calls knows.
    lineage: dict[str, Any] = field(default_factory=dict)
    # Asked after every step: for whoever gets SIGTERM in another process, or off the main thread.
    told_to_stop: Callable[[], bool] = lambda: False
    history: list[Metrics] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.directory / f"{self.name}.pt"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.jsonl"

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]

    def run(self, *, seconds: float | None = None) -> bool:
        """Train to the end, for ``seconds``, or until SIGTERM, Ctrl-C or ``told_to_stop``; True
        when finished. Ends with the averaged weights live. Raises Diverged, with the last good
        checkpoint left as it was, and OtherRun if the one there has another ``lineage``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        parameters = self.parameters
        optimizer = new_optimizer(
            self.optimizer, parameters, self.learning_rate,
            betas=self.betas, weight_decay=self.weight_decay,
        )  # fmt: skip
        ema = Ema(parameters, self.ema_decay)
        first, began = self._load(optimizer, ema)
        if first == self.steps and not self.history:  # another process ended it: what it told last
            self.history = [json.loads(self.log.read_text().splitlines()[-1])]
        start = saved = time.monotonic()
        with _asked_to_stop() as asked, _Report(self, first) as report:
            for step in range(first, self.steps):
                factor = cosine(step, self.steps, warmup=self.warmup, hold=self.hold, began=began)
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * factor
                optimizer.zero_grad(set_to_none=True)
                report.add(self._gradients(step, parameters))
                optimizer.step()
                ema.update(step)
                report.step(step + 1, ema)
                now = time.monotonic()
                over = seconds is not None and now - start > seconds
                stop = processes.any_of_them(over or asked.is_set() or self.told_to_stop())
                if now - saved > self.save_every_s or step + 1 == self.steps or stop:
                    self._save(step + 1, began, optimizer, ema)
                    saved = now
                if stop and step + 1 < self.steps:
                    return False
        ema.swap()
        return True

    def _gradients(self, step: int, parameters: list[nn.Parameter]) -> Metrics:
        """Leave the effective batch's gradient, clipped, in ``.grad``; the metrics of this share,
        added up over the parts for the loss and averaged for the rest."""
        parts = self.loss(step, draws(self.seed, step))
        device, total, sums, count = parameters[0].device.type, 0.0, Metrics(), 0
        while True:
            with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
                part = next(parts, None)
            if part is None:
                break
            loss, metrics = part
            loss.backward()
            total, count = total + float(loss.detach()), count + 1
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        processes.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip))
        if processes.any_of_them(not math.isfinite(total + norm)):
            good = f"{self.checkpoint} is good up to its step"
            if not self.checkpoint.exists():
                good = "no checkpoint was written yet"
            raise Diverged(f"{self.name}: loss {total}, gradient {norm} at step {step}; {good}")
        return {"loss": total, **{key: value / count for key, value in sums.items()}}

    def _save(self, step: int, began: int, optimizer: torch.optim.Optimizer, ema: Ema) -> None:
        if processes.rank() > 0:
            return
        state = {
            "step": step,
            "began": began,
            "lineage": self.lineage,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimizer": optimizer.state_dict(),
            "ema": ema.average,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _load(self, optimizer: torch.optim.Optimizer, ema: Ema) -> tuple[int, int]:
        """The step to go on with, and the one the optimizer began at (``carry`` drops it)."""
        if not self.checkpoint.exists():
            return 0, 0
        # To the CPU: every process reads the first one's file, and may run on another device.
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        self._refuse_another(state.get("lineage") or {})
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for average, kept in zip(ema.average, state["ema"], strict=True):
                average.copy_(kept)
        step = int(state["step"])
        return step, int(state["began"]) if "optimizer" in state else step

    def _refuse_another(self, kept: dict[str, Any]) -> None:
        """Weights of another recipe under this one's name would be worse than none."""
        if not self.lineage or kept == self.lineage:
            return
        names = [k for k in (self.lineage | kept) if self.lineage.get(k) != kept.get(k)]
        what = "; ".join(f"{k} was {kept.get(k)!r}, is {self.lineage.get(k)!r}" for k in names)
        if not kept:  # of a version that did not write it down
            what = "it does not say what it was trained with"
        raise OtherRun(f"{self.checkpoint} is of another run: {what}; take another --out")


class _Report:
    """What a run tells while it runs: a bar, a line of JSON every 100 steps, TensorBoard."""

    def __init__(self, stage: Stage, first: int) -> None:
        self.stage, self.first = stage, first
        self.sums, self.summed, self.start = Metrics(), 0, time.monotonic()
        self.speaks = processes.rank() == 0

    def __enter__(self) -> _Report:
        stage = self.stage
        self.bar = Progress(
            TextColumn(f"{stage.name:>12}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=not self.speaks,
        )  # fmt: skip
        self.bar.start()
        self.task = self.bar.add_task(stage.name, total=stage.steps, completed=self.first, note="")
        if self.speaks:
            self.log = stage.log.open("a")
            self.board = SummaryWriter(str(stage.directory / "tensorboard" / stage.name))
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.speaks:
            self.log.close()
            self.board.close()

    def add(self, metrics: Metrics) -> None:
        for key, value in metrics.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.summed += 1

    def step(self, done: int, ema: Ema) -> None:
        stage = self.stage
        self.bar.update(self.task, advance=1)
        last = done == stage.steps
        if done % LOG_EVERY and not last:
            return
        line = {key: round(value / self.summed, 5) for key, value in self.sums.items()}
        self.sums, self.summed = Metrics(), 0
        if stage.peek and stage.peek_every and (done % stage.peek_every == 0 or last):
            ema.swap()
            line |= stage.peek(done)
            ema.swap()
        line |= {"step": done, "minutes": round((time.monotonic() - self.start) / 60, 2)}
        stage.history.append(line)
        if self.speaks:
            print(json.dumps(line), file=self.log, flush=True)
            for key, value in line.items():
                self.board.add_scalar(key, value, done)
        self.bar.update(self.task, note=f"loss {line['loss']:.4f}")


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set by SIGTERM, while this lasts: a scheduler that takes the machine back says so first.
    And by the first Ctrl-C; the second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python delivers signals to the main thread only
        return

    def ask(number: int, _: object) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    # Who was started in the background of a script ignores Ctrl-C, which is another's.
    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
