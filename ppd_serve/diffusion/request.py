"""What a caller asks the engine for, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MAX_USERS = 4


class User(NamedTuple):
    """One taste in a picture: an embedding ``[rows, dim]`` and how much of it (negative: away).

    A plain ``(embedding, weight)`` tuple does as well.
    """

    embedding: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """One picture. Every field is set; ``Defaults.request`` fills what a caller leaves out.

    Without a ``negative_prompt``, guidance leads away from no prompt at all.
    ``guidance_interval`` is (from, to) as shares of the steps: outside it the picture is not guided
    (arXiv 2404.07724), and each step there costs one part of a forward instead of two. With
    ``preview_every`` n, each n-th step's ``Progress`` has a preview; 0 is none. Of a backbone with
    several stages the first does this; what later ones do is their own (``LaterStage.asked``), but
    previews are of the last.
    """

    prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    negative_prompt: str = ""
    seed: int = 0
    users: Sequence[tuple[np.ndarray, float]] = ()
    preference_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    preview_every: int = 0


@dataclass(frozen=True)
class Defaults:
    """How a release is meant to be sampled. ``sizes`` are (width, height); the first is usual."""

    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance_scale: float
    sampler: str
    guidance_rescale: float = 0.0
    preference_scale: float = 1.0

    def request(self, prompt: str, **chosen: Any) -> GenerationRequest:
        """A request with these defaults wherever ``chosen`` says nothing, or None."""
        values: dict[str, Any] = {
            "width": self.sizes[0][0],
            "height": self.sizes[0][1],
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "sampler": self.sampler,
            "guidance_rescale": self.guidance_rescale,
            "preference_scale": self.preference_scale,
        }
        values |= {key: value for key, value in chosen.items() if value is not None}
        return GenerationRequest(prompt=prompt, **values)


@dataclass(frozen=True)
class Timing:
    """Seconds waited for a place in the batch, and seconds from there to the picture."""

    queued: float
    running: float


@dataclass(frozen=True, eq=False)
class Result:
    """A picture: ``pixels`` uint8 ``[H, W, 3]``, its final ``latents`` float32 ``[C, h, w]``."""

    pixels: np.ndarray
    latents: np.ndarray
    seed: int
    timing: Timing
