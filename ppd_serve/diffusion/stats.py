"""What the engine is doing, for metrics and status pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """One look at an engine; a moment later it may have moved on.

    ``rows`` and ``seconds`` are of the last tick that stepped somebody; ``batch_limit`` is what a
    forward of the tightest latent shape seen may hold; ``text_hits`` and ``text_misses`` count how
    often a prompt's states were there already, and how often they were made. ``steps`` are the
    ticks that stepped somebody since the start, ``total_rows`` and ``total_seconds`` their sums.
    """

    queued: int
    active: int
    ticks: int
    rows: int
    seconds: float
    batch_limit: int
    text_hits: int
    text_misses: int
    steps: int
    total_rows: int
    total_seconds: float
