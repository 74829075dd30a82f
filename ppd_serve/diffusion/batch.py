"""The rows in flight: how they start, step, are decoded, and leave one by one.

One thread's affair, the engine's, but for the work on large batches (``lanes.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from ppd_serve.device_errors import is_device_lost, is_out_of_memory
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.batch_limit import BatchLimits
from ppd_serve.diffusion.decoding import decode_rows, next_to_decode
from ppd_serve.diffusion.lanes import Lanes
from ppd_serve.diffusion.request import Result
from ppd_serve.diffusion.rows import Row, begin_next_stage, start_row, step_rows
from ppd_serve.diffusion.ticket import Ticket
from ppd_serve.diffusion.turns import Turns
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import Cancelled, GenerationFailed, PPDError

log = logging.getLogger(__name__)


class Batch:
    """``settle`` is told once how each ticket ended: with a picture or an error."""

    def __init__(
        self,
        backbone: Backbone,
        adapter: UserAdapter | None,
        settle: Callable[[Ticket, Result | PPDError], None],
    ) -> None:
        self.limits = BatchLimits(backbone)
        self._backbone = backbone
        self._adapter = adapter
        self._settle = settle
        self._turns = Turns()
        self._lanes = Lanes(backbone.device)
        self._running: list[Row] = []  # in the order of waiting
        self._finished: list[Row] = []  # to be decoded, in nobody's place any more

    def __len__(self) -> int:
        """Rows being denoised or decoded."""
        return len(self._running) + len(self._finished)

    @property
    def running(self) -> int:
        """Rows that have steps to go."""
        return len(self._running)

    def drop_cancelled(self) -> None:
        for row in [*self._running, *self._finished]:
            if row.ticket.cancelled:
                self._leave(row, Cancelled())

    @torch.inference_mode()
    def start(self, ticket: Ticket) -> None:
        """Make a row of it, or end it with what prevents that."""
        try:
            self._running.append(start_row(ticket, self._backbone, self._adapter))
        except Exception as error:
            self._settle(ticket, _failure(ticket, error))

    @torch.inference_mode()
    def step(self, most: int) -> int:
        """One step for the group whose turn it is. How many rows took part, at most ``most``."""
        rows = self._turns.next(self._running, lambda group: min(most, self.limits.of(group)))
        parts = self._lanes.each(self._forward, rows)
        if all(isinstance(outcome, list) for _, outcome in parts) and parts:
            self.limits.went_well(rows[0].group, len(rows))
        if len(rows) > 1 and any(_ran_out(outcome) for _, outcome in parts):
            # Parts are in memory together: together they are too many.
            self.limits.ran_out(rows[0].group, len(rows))
        for part, outcome in parts:
            if len(rows) == 1 or not _ran_out(outcome):  # else they go on at the next tick
                self._stepped(part, outcome)
            if isinstance(outcome, Exception):
                outcome.with_traceback(None)  # its frames keep the rows
        return len(rows)

    @torch.inference_mode()
    def decode(self) -> None:
        """Make pictures of some of the rows that are finished."""
        batch = next_to_decode([row for row in self._finished if not row.ticket.cancelled])
        for part, pictures in self._lanes.each(self._decoded, batch):
            for row, made in zip(part, pictures, strict=True):
                self._leave(row, made if isinstance(made, Result) else _failure(row.ticket, made))

    def close(self) -> None:
        """Nothing is stepped or decoded any more."""
        self._lanes.close()

    def clear(self) -> list[Ticket]:
        """Drop every row. The tickets, which are still to be settled."""
        tickets = [row.ticket for row in [*self._running, *self._finished]]
        self._running.clear()
        self._finished.clear()
        return tickets

    def _forward(self, rows: list[Row]) -> list[bool] | Exception:
        """Which of ``rows`` are finite after their step, or why none of them took it."""
        try:
            return step_rows(rows, self._adapter)
        except Exception as error:
            if is_device_lost(error):
                raise  # the engine dies, and whoever started it begins another process
            return error

    def _decoded(self, rows: list[Row]) -> list[Result | Exception]:
        return decode_rows(rows, self._backbone)

    def _stepped(self, rows: list[Row], outcome: list[bool] | Exception) -> None:
        """A forward that failed is halved until only the guilty fail; halves that find no memory go
        on from the next tick."""
        if isinstance(outcome, Exception):
            if len(rows) == 1:
                self._leave(rows[0], _failure(rows[0].ticket, outcome))
            elif is_out_of_memory(outcome):
                self.limits.ran_out(rows[0].group, len(rows))
            else:
                half = len(rows) // 2
                for part in (rows[:half], rows[half:]):
                    self._stepped(part, self._forward(part))
            outcome.with_traceback(None)  # its frames know this one, and keep the rows
            return
        well = [row for row, ok in zip(rows, outcome, strict=True) if ok]
        for row in rows:
            if row not in well:
                self._leave(row, _failure(row.ticket, GenerationFailed("the latent is not finite")))
        self._report(well)
        for row in well:
            if row.stage_finished:
                self._go_on(row)

    def _go_on(self, row: Row) -> None:
        """To the next stage, in the same place; or, after the last, to the decoder."""
        if not row.later:
            self._running.remove(row)
            self._finished.append(row)
            return
        try:
            begin_next_stage(row, self._backbone)
        except Exception as error:
            self._leave(row, _failure(row.ticket, error))

    def _report(self, rows: list[Row]) -> None:
        """Tell their tickets. A preview that cannot be made is left out."""
        shown = [row for row in rows if row.wants_preview]
        previews: dict[Row, np.ndarray] = {}
        if shown:
            try:
                pixels = self._backbone.preview(torch.stack([row.x0_CHW for row in shown]))
                previews = dict(zip(shown, pixels, strict=True))
            except Exception:
                log.exception("no preview could be made")
        for row in rows:
            row.ticket.advanced(row.progress(previews.get(row)))

    def _leave(self, row: Row, outcome: Result | PPDError) -> None:
        (self._finished if row in self._finished else self._running).remove(row)
        self._settle(row.ticket, outcome)


def _ran_out(outcome: list[bool] | Exception) -> bool:
    return isinstance(outcome, Exception) and is_out_of_memory(outcome)


def _failure(ticket: Ticket, error: Exception) -> PPDError:
    ours = isinstance(error, PPDError)
    told = "a picture could not be made: %s", error
    ticket.context.run(log.error, *told, exc_info=None if ours else error)
    error.with_traceback(None)  # its frames would keep the row as long as the ticket
    return error if isinstance(error, PPDError) else GenerationFailed(type(error).__name__)
