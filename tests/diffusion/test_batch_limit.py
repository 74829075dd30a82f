"""Memory that runs out makes forwards smaller, and nobody's picture worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppd_serve.device_errors import is_out_of_memory
from ppd_serve.diffusion import batch_limit, rows
from ppd_serve.diffusion.batch_limit import (
    GROW_AFTER,
    HEADROOM,
    UNBOUNDED,
    BatchLimits,
    rows_that_fit,
)
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.turns import Group
from ppd_serve.errors import GenerationFailed
from tests.diffusion.toy import DEFAULTS, Toy

GROUP = Group(Toy(), (3, 4, 4))
WAIT = 30


def only(parts: int) -> Any:
    def before(x: torch.Tensor) -> None:
        if len(x) > parts:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return before


def test_knows_memory_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(cpu.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


@given(free=st.integers(0, 10**11), fixed=st.integers(0, 10**9), a_row=st.integers(1, 10**10))
def test_as_many_rows_as_fit(free: int, fixed: int, a_row: int) -> None:
    rows = rows_that_fit(free, fixed + a_row, fixed + 2 * a_row)
    usable = free * (1 - HEADROOM)
    assert rows == 1 or fixed + rows * a_row <= usable
    assert fixed + (rows + 1) * a_row > usable or rows == 1


def test_forwards_that_cost_alike_do_not_count_to_billions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model on a large GPU: the second forward may even take less than the first."""

    class OnGpu(Toy):
        device = torch.device("cuda")

    monkeypatch.setattr(batch_limit, "_peak", lambda group, backbone, rows: 1000 - rows)
    for name, told in {"memory_reserved": 0, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: told)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 10**9, 80 * 10**9))
    gpu = OnGpu()
    assert batch_limit.measure(Group(gpu, (3, 4, 4)), gpu) == batch_limit.MOST


def test_a_measurement_without_slope_is_not_divided_by() -> None:
    assert rows_that_fit(1000, 500, 500) >= 1


def test_a_cpu_is_not_measured() -> None:
    assert BatchLimits(Toy()).of(GROUP) == UNBOUNDED


def test_halves_and_grows_back_by_one() -> None:
    limits = BatchLimits(Toy())
    limits.of(GROUP)
    limits.ran_out(GROUP, 9)
    assert limits.of(GROUP) == limits.smallest == 4
    assert limits.of(GROUP._replace(shape=(3, 8, 8))) == UNBOUNDED, "another shape has its own"
    assert limits.of(GROUP._replace(stage=Toy())) == UNBOUNDED, "another stage has its own"
    for _ in range(3 * GROW_AFTER):
        limits.went_well(GROUP, 3)  # says nothing of 4
    assert limits.of(GROUP) == 4
    for _ in range(GROW_AFTER):
        limits.went_well(GROUP, 4)
    assert limits.of(GROUP) == 5
    limits.ran_out(GROUP, 5)
    limits.ran_out(GROUP, 1)
    assert limits.of(GROUP) == 1


def test_rows_go_on_in_smaller_forwards() -> None:
    toy = Toy(only(4))
    engine = Engine(toy)
    wanted = [
        DEFAULTS.request("a" * i, seed=i, steps=3, sampler="euler_ancestral") for i in range(5)
    ]
    tickets = engine.submit_all(wanted)
    with engine:
        made = [ticket.result(WAIT).latents for ticket in tickets]
    assert [shape[0] for shape in toy.forwards] == [10, *[4] * 7, 2]
    for request, latents in zip(wanted, made, strict=True):
        with Engine(Toy()) as lonely:
            alone = lonely.submit(request).result(WAIT).latents
        assert np.allclose(alone, latents, atol=1e-5)


def test_a_row_too_large_alone_fails() -> None:
    with Engine(Toy(only(1))) as engine:
        guided, plain = engine.submit_all(
            [DEFAULTS.request("a"), DEFAULTS.request("bb", guidance_scale=1.0)]
        )
        plain.result(WAIT)
        with pytest.raises(GenerationFailed):
            guided.result(WAIT)


def test_a_step_taken_again_draws_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out after the noise was drawn: the row's own generator has moved by then."""
    wanted = [DEFAULTS.request("a", seed=i, sampler="euler_ancestral") for i in range(2)]

    def draw() -> list[np.ndarray]:
        engine = Engine(Toy())
        tickets = engine.submit_all(wanted)
        with engine:
            return [ticket.result(WAIT).latents for ticket in tickets]

    expected = draw()
    honest, calls = rows.advance, []

    def fails_at_second(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return honest(*args)

    monkeypatch.setattr(rows, "advance", fails_at_second)
    assert np.allclose(draw(), expected, atol=1e-5)
    assert len(calls) > 5
