"""How many rows of one group a forward may hold, by memory.

On a GPU two small forwards are measured when a group first appears, and what fits the free memory
is worked out from them. Where it still runs out (or nothing was measured: on a CPU), the forward
that failed is halved; after many full forwards that went well, one row more is tried.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

import torch

from ppd_serve.device_errors import is_out_of_memory
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.turns import Group

log = logging.getLogger(__name__)

GROW_AFTER = 200  # full forwards without failure
HEADROOM = 0.1  # of the free memory: decoding, fragments, other processes
UNBOUNDED = sys.maxsize
MOST = 1024  # rows that are asked for: two small forwards may cost alike, and divide to nonsense


@dataclass
class _Limit:
    now: int
    most: int
    went_well: int = 0


class BatchLimits:
    """One limit for each group seen."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._limits: dict[Group, _Limit] = {}

    def of(self, group: Group) -> int:
        """Rows that a forward may hold, at least 1."""
        if group not in self._limits:
            fits = measure(group, self._backbone)
            self._limits[group] = _Limit(now=fits, most=fits)
        return self._limits[group].now

    def ran_out(self, group: Group, rows: int) -> None:
        """A forward of so many rows found no memory."""
        limit = self._limits[group]
        limit.now, limit.went_well = max(1, rows // 2), 0
        log.warning("no memory for %d rows of %s: %d from now on", rows, group.shape, limit.now)

    def went_well(self, group: Group, rows: int) -> None:
        """A forward of so many rows is done; only a full one says anything."""
        limit = self._limits[group]
        limit.went_well += rows >= limit.now
        if limit.went_well >= GROW_AFTER and limit.now < limit.most:
            limit.now, limit.went_well = limit.now + 1, 0

    @property
    def smallest(self) -> int:
        """The tightest limit of the groups seen. May be asked by any thread."""
        return min((limit.now for limit in list(self._limits.values())), default=UNBOUNDED)


def rows_that_fit(free: int, one_row: int, two_rows: int) -> int:
    """From the peak bytes of forwards with one and with two rows: how many fit ``free``.

    A forward's memory is a fixed part and one that grows with its rows. At least 1: a row that does
    not fit alone can only be found out by trying.
    """
    a_row = max(two_rows - one_row, 1)
    fixed = max(one_row - a_row, 0)
    return max(1, int((free * (1 - HEADROOM) - fixed) // a_row))


def measure(group: Group, backbone: Backbone) -> int:
    """Guided rows of ``group`` that fit the GPU's free memory; unbounded on a CPU."""
    stage, shape = group
    if stage.device.type != "cuda":
        return UNBOUNDED
    try:
        one, two = (_peak(group, backbone, rows) for rows in (1, 2))
    except Exception as error:  # the rows will meet it too, each for itself
        return 1 if is_out_of_memory(error) else UNBOUNDED
    cached = torch.cuda.memory_reserved(stage.device) - torch.cuda.memory_allocated(stage.device)
    parts = 2 * rows_that_fit(torch.cuda.mem_get_info(stage.device)[0] + cached, one, two)
    candidates = range(1, min(parts // 2, MOST) + 1)
    fits = max((n for n in candidates if stage.bucket(2 * n) <= parts), default=1)
    log.info("%d rows of %s fit the memory", fits, shape)
    return fits


def _peak(group: Group, backbone: Backbone, rows: int) -> int:
    """Bytes that a forward of so many guided rows takes beyond what was there before."""
    (stage, shape), parts = group, 2 * rows
    text = {key: x.expand(parts, *x.shape[1:]) for key, x in backbone.encode("").items()}
    x = torch.zeros(parts, *shape, device=stage.device)
    timesteps = torch.ones(parts, device=stage.device)
    before = torch.cuda.memory_allocated(stage.device)
    torch.cuda.reset_peak_memory_stats(stage.device)
    stage.denoise(x, timesteps, text)
    return torch.cuda.max_memory_allocated(stage.device) - before
