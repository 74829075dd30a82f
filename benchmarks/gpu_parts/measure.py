"""Time, memory and arithmetic of a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

GB = 1e9
MATRIX = 8192  # large enough for every GPU of today to reach its peak


def finished(device: str) -> None:
    """Wait until the device has done all that it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def times(
    run: Callable[[], object], device: str, repeats: int, *, warm: bool = False
) -> list[float]:
    """Seconds of each, after once to warm up unless all is warm."""
    if not warm:
        run()
    found = []
    for _ in range(repeats):
        finished(device)
        began = time.perf_counter()
        run()
        finished(device)
        found.append(time.perf_counter() - began)
    return found


def milliseconds(run: Callable[[], object], device: str, repeats: int) -> float:
    return 1e3 * statistics.median(times(run, device, repeats))


def matmul_peak(device: str, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of the fastest of many products of two square matrices."""
    side = MATRIX if device.startswith("cuda") else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(times(lambda: a @ b, device, 20)) / 1e12


def tflop(run: Callable[[], object]) -> float:
    """What torch counts of matrix products, convolutions and attention."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def forget_peak(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float | None:
    """The most that was allocated since ``forget_peak``; None on a CPU, which does not tell."""
    return torch.cuda.max_memory_allocated() / GB if device.startswith("cuda") else None
