"""What was set where an engine was made holds in its thread: torch's settings are each thread's."""

from __future__ import annotations

import torch
from torch import Tensor

from ppd_serve.diffusion.engine import Engine
from tests.diffusion.toy import DEFAULTS, Toy


def test_compiling_may_go_on_as_long_as_it_was_told_to() -> None:
    """Beyond torch's own limit of 8 forms a compiled block is run as it is, without a word."""
    seen: list[int] = []

    def look(x: Tensor) -> None:
        seen.append(torch._dynamo.config.recompile_limit)

    with torch._dynamo.config.patch(recompile_limit=256), Engine(Toy(look)) as engine:
        engine.submit(DEFAULTS.request("a house")).result(30)
    assert set(seen) == {256}
