"""Whole releases in miniature: a production checkpoint's very classes and configs, at toy size and
with random weights. They go through exactly the product's code."""

from __future__ import annotations

from collections.abc import Callable

from ppd_serve.release import Release
from tests.twins.sd15 import make_sd15
from tests.twins.sdxl import make_sdxl
from tests.twins.stable_cascade import make_stable_cascade

TWINS: dict[str, Callable[..., Release]] = {
    "sd15": make_sd15,
    "sdxl": make_sdxl,
    "stable_cascade": make_stable_cascade,
}
"""``TWINS[name](path, make_encoder=…, seed=…)`` writes a release to ``path``."""
