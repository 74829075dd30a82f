"""A pair: one choice of one person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """For ``prompt``, the picture ``preferred`` was chosen over ``rejected``.

    Both are encoded image bytes (PNG, JPEG or WebP), checked before they get here.
    """

    prompt: str
    preferred: bytes
    rejected: bytes
