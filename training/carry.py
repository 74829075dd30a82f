"""Moves an unfinished bootstrap to another machine: small enough to travel, enough to go on.

Pools, latents, features and readings are made again from their seeds; finished parts travel as they
ship (fp16), and a stage in the middle of its run with live and averaged weights in fp16 and without
its optimizer, whose moments are warmed up anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

MADE_AGAIN = ("pool", "latents-", "features-", "readings-", "draft-", "release", "report")


def pack(work: Path, carry: Path) -> int:
    """Write everything of ``work`` that has to travel to ``carry``; its size in bytes."""
    shutil.rmtree(carry, ignore_errors=True)
    carry.mkdir(parents=True)
    for path in sorted(work.iterdir()):
        if path.name.startswith(MADE_AGAIN) or path.suffix == ".part":
            continue
        if path.suffix == ".pt":
            state = torch.load(path, map_location="cpu", weights_only=True)
            del state["optimizer"]
            torch.save(_halved(state), carry / path.name)
        elif path.is_dir():
            shutil.copytree(path, carry / path.name)
        else:
            shutil.copyfile(path, carry / path.name)
    return sum(f.stat().st_size for f in carry.rglob("*") if f.is_file())


def unpack(carry: Path, work: Path) -> None:
    """Lay a packed bootstrap out in ``work``, where nothing newer may be overwritten."""
    work.mkdir(parents=True, exist_ok=True)
    for path in sorted(carry.iterdir()):
        target = work / path.name
        if target.exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)


def _halved(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.half() if state.is_floating_point() else state
    if isinstance(state, dict):
        return {key: _halved(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_halved(value) for value in state]
    return state
