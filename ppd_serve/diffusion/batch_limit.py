"""How many rows of one latent shape a forward may hold, by memory.

On a GPU two small forwards are measured when a shape first appears, and what fits the free memory
is worked out from them. Where it still runs out (or nothing was measured: on a CPU), the forward
that failed is halved; after many full forwards that went well, one row more is tried.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

import torch

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.turns import Shape

log = logging.getLogger(__name__)

GROW_AFTER = 200  # full forwards without failure
HEADROOM = 0.1  # of the free memory: decoding, fragments, other processes
UNBOUNDED = sys.maxsize


@dataclass
class _Limit:
    now: int
    most: int
    went_well: int = 0


class BatchLimits:
    """One limit for each latent shape seen."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._limits: dict[Shape, _Limit] = {}

    def of(self, shape: Shape) -> int:
        """Rows that a forward may hold, at least 1."""
        if shape not in self._limits:
            fits = measure(self._backbone, shape)
            self._limits[shape] = _Limit(now=fits, most=fits)
        return self._limits[shape].now

    def ran_out(self, shape: Shape, rows: int) -> None:
        """A forward of so many rows found no memory."""
        limit = self._limits[shape]
        limit.now, limit.went_well = max(1, rows // 2), 0
        log.warning("out of memory with %d rows of %s: %d from now on", rows, shape, limit.now)

    def went_well(self, shape: Shape, rows: int) -> None:
        """A forward of so many rows is done; only a full one says anything."""
        limit = self._limits[shape]
        limit.went_well += rows >= limit.now
        if limit.went_well >= GROW_AFTER and limit.now < limit.most:
            limit.now, limit.went_well = limit.now + 1, 0

    @property
    def smallest(self) -> int:
        """The tightest limit of the shapes seen. May be asked by any thread."""
        return min((limit.now for limit in list(self._limits.values())), default=UNBOUNDED)


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error on a GPU; on a CPU, and in the libraries below, only words say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def rows_that_fit(free: int, one_row: int, two_rows: int) -> int:
    """From the peak bytes of forwards with one and with two rows: how many fit ``free``.

    A forward's memory is a fixed part and one that grows with its rows. At least 1: a row that does
    not fit alone can only be found out by trying.
    """
    a_row = max(two_rows - one_row, 1)
    fixed = max(one_row - a_row, 0)
    return max(1, int((free * (1 - HEADROOM) - fixed) // a_row))


def measure(backbone: Backbone, shape: Shape) -> int:
    """Guided rows of ``shape`` that fit the GPU's free memory; unbounded on a CPU."""
    if backbone.device.type != "cuda":
        return UNBOUNDED
    try:
        one, two = (_peak(backbone, shape, rows) for rows in (1, 2))
    except Exception as error:  # the rows will meet it too, each for itself
        return 1 if is_out_of_memory(error) else UNBOUNDED
    cached = torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(
        backbone.device
    )
    parts = 2 * rows_that_fit(torch.cuda.mem_get_info(backbone.device)[0] + cached, one, two)
    fits = max((n for n in range(1, parts // 2 + 1) if backbone.bucket(2 * n) <= parts), default=1)
    log.info("%d rows of %s fit the memory", fits, shape)
    return fits


def _peak(backbone: Backbone, shape: Shape, rows: int) -> int:
    """Bytes that a forward of so many guided rows takes beyond what was there before."""
    parts = 2 * rows
    text = {key: x.expand(parts, *x.shape[1:]) for key, x in backbone.encode("").items()}
    x = torch.zeros(parts, *shape, device=backbone.device)
    timesteps = torch.ones(parts, device=backbone.device)
    before = torch.cuda.memory_allocated(backbone.device)
    torch.cuda.reset_peak_memory_stats(backbone.device)
    backbone.denoise(x, timesteps, text)
    return torch.cuda.max_memory_allocated(backbone.device) - before
