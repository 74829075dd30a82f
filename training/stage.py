"""The loop every bootstrap stage runs in: steps, EMA, progress, atomic checkpoints, exact resume.

A stage owns its modules and one ``step``; this file owns time. All randomness of step ``i`` comes
from a generator seeded by (seed, i), so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

Metrics = dict[str, float]


class Diverged(RuntimeError):
    """A loss or its gradient was not finite; the last checkpoint is good."""


@dataclass
class Draws:
    """The random numbers of one step, for torch and numpy."""

    torch: torch.Generator
    numpy: np.random.Generator


def draws(seed: int, step: int) -> Draws:
    rng = np.random.default_rng((seed, step))
    return Draws(torch.Generator().manual_seed(int(rng.integers(2**62))), rng)


def cosine(step: int, total: int, *, warmup: int = 100, hold: float = 0.4, began: int = 0) -> float:
    """Learning-rate factor: a plateau for ``hold`` of the run, cosine down to 2 %; and a warm-up
    from ``began``, the step at which the optimizer knew nothing yet."""
    warm = min(1.0, (step - began + 1) / max(warmup, 1))
    done = step / max(total, 1)
    if done < hold:
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, (done - hold) / (1 - hold)))))


class Ema:
    """Exponential moving average of parameters, with a warm-up of the decay."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [p.detach() for p in self.parameters], alpha=1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live and the averaged weights (twice = back again)."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


@dataclass
class Stage:
    """What to train, for how long, and where the checkpoint lives."""

    name: str
    directory: Path
    modules: dict[str, nn.Module]
    loss: Callable[[int, Draws], tuple[Tensor, Metrics]]
    steps: int
    learning_rate: float
    seed: int = 0
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
    history: list[Metrics] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.directory / f"{self.name}.pt"

    def run(self, *, seconds: float | None = None) -> bool:
        """Train to the end, or for ``seconds``; True when finished. Ends with EMA weights live."""
        self.directory.mkdir(parents=True, exist_ok=True)
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, self.learning_rate, betas=self.betas, weight_decay=self.weight_decay,
            fused=True,
        )  # fmt: skip
        device = parameters[0].device.type
        ema = Ema(parameters, self.ema_decay)
        first, began = self._load(optimizer, ema)
        start = saved = time.monotonic()
        sums: dict[str, float] = {}
        summed = 0
        log = (self.directory / f"{self.name}.jsonl").open("a")
        with Progress(
            TextColumn(f"{self.name:>12}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        ) as progress, log:  # fmt: skip
            bar = progress.add_task(self.name, total=self.steps, completed=first, note="")
            for step in range(first, self.steps):
                factor = cosine(step, self.steps, warmup=self.warmup, hold=self.hold, began=began)
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * factor
                with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
                    loss, metrics = self.loss(step, draws(self.seed, step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip)
                if not torch.isfinite(loss + norm):
                    raise Diverged(f"{self.name}: loss {loss.item()}, gradient {norm} at {step}")
                optimizer.step()
                ema.update(step)
                for key, value in {"loss": loss.item(), **metrics}.items():
                    sums[key] = sums.get(key, 0.0) + value
                summed += 1
                progress.update(bar, advance=1)
                if (step + 1) % 100 == 0 or step + 1 == self.steps:
                    line = {k: round(v / summed, 5) for k, v in sums.items()}
                    sums, summed = {}, 0
                    if self.peek and self.peek_every and (
                        (step + 1) % self.peek_every == 0 or step + 1 == self.steps
                    ):  # fmt: skip
                        ema.swap()
                        line |= self.peek(step + 1)
                        ema.swap()
                    line |= {"step": step + 1, "minutes": round((time.monotonic() - start) / 60, 2)}
                    self.history.append(line)
                    print(json.dumps(line), file=log, flush=True)
                    progress.update(bar, note=f"loss {line['loss']:.4f}")
                now = time.monotonic()
                out_of_time = seconds is not None and now - start > seconds
                if now - saved > self.save_every_s or step + 1 == self.steps or out_of_time:
                    self._save(step + 1, began, optimizer, ema)
                    saved = now
                if out_of_time and step + 1 < self.steps:
                    return False
        ema.swap()
        return True

    def _save(self, step: int, began: int, optimizer: torch.optim.Optimizer, ema: Ema) -> None:
        state = {
            "step": step,
            "began": began,
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
        state = torch.load(self.checkpoint, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for average, kept in zip(ema.average, state["ema"], strict=True):
                average.copy_(kept)
        step = int(state["step"])
        return step, int(state["began"]) if "optimizer" in state else step
