"""Who is nearest: everybody is looked at while they are few, and FAISS proposes when they are many.

    change ─► slots ─► recent ──(256 of them: folded in)──► cells (FAISS)
                │         │                                    │
    search ◄── rank ◄─────┴──────────── proposed slots ────────┘

Up to ``EXACT_UP_TO`` users a search is one pass over the slots, exact. Beyond, a thread trains
cells in the background, and again when as much has changed as was there when it last did. What
changed since FAISS last saw it is looked at beside the cells, so that a search knows of every
change that came before it.

Tiers only **propose** slots. The answer is whoever holds the slot now, scored by what it holds now:
a tier that is behind may miss somebody for a moment, but cannot name the wrong user.
"""

from __future__ import annotations

import logging
import threading

import faiss
import numpy as np

from ppd_serve.preferences.index_cells import PROPOSALS, Cells, sample_size
from ppd_serve.preferences.index_storage import Slots

EXACT_UP_TO = 16_384  # users; a pass over so many takes some 2 ms at 256 numbers each
FOLD_AT = 256  # changes; looking at so many beside the cells takes some 0.2 ms
_CHECKED = 64  # users whose neighbours say how many cells to open
log = logging.getLogger(__name__)


class Neighbours:
    """The tiers over some slots. Thread-safe."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._cells: Cells | None = None
        self._trained_on = 0  # users when cells were last trained, or were not worth it
        self._changes = 0  # since then
        self._recent: set[int] = set()  # changed since FAISS saw them
        self._folding: set[int] = set()  # FAISS is being shown them
        self._worker: threading.Thread | None = None

    def changed(self, slot: int) -> None:
        """The slot holds something else, or nothing, from now on."""
        with self._lock:
            self._changes += 1
            if self._cells is not None or self._worker is not None:
                self._recent.add(slot)
        self.tend()

    def tend(self) -> None:
        """Start the background's work if there is some and nobody is at it."""
        with self._lock:
            if self._worker is not None or not (self._due() or self._folds()):
                return
            self._worker = threading.Thread(target=self._work, name="user-index", daemon=True)
            worker = self._worker
        worker.start()

    def settle(self) -> None:
        """Return when the work that is due is done."""
        while (worker := self._worker) is not None and worker.is_alive():
            worker.join()

    def nearest(
        self, key: np.ndarray, k: int, leave_out: str | None = None
    ) -> list[tuple[str, float]]:
        """Names and cosines of the ``k`` nearest to a search key, float64 ``[dim]``."""
        count = max(PROPOSALS, 4 * k)
        with self._lock:
            cells, recent = self._cells, self._recent | self._folding
        if cells is not None and len(recent) <= EXACT_UP_TO:
            # So many that the recent ones, which may be anywhere by now, are in nobody's way.
            known = [slot for slot in cells.nearest(key, count + len(recent)) if slot not in recent]
            near = self._slots.nearest_of([*recent], key, count)
            found = self._slots.rank(key, [*known[:count], *near], k, leave_out)
            if len(found) == k:
                return found
        (near_slots,) = self._slots.nearest(key[None], count)
        return self._slots.rank(key, near_slots.tolist(), k, leave_out)

    def _due(self) -> bool:
        if self._cells is None:
            return len(self._slots) > max(EXACT_UP_TO, 2 * self._trained_on)
        return self._changes >= max(self._trained_on, EXACT_UP_TO)

    def _folds(self) -> bool:
        return self._cells is not None and len(self._recent) >= FOLD_AT

    def _work(self) -> None:
        # One core: the others draw pictures. (OpenMP keeps this number by thread.)
        faiss.omp_set_num_threads(1)
        try:
            while True:
                with self._lock:
                    due, folds = self._due(), self._folds()
                    if not due and not folds:
                        self._worker = None
                        return
                if due:
                    self._train()
                else:
                    self._fold()
        except Exception:
            # No second try: answers stay right, they only take longer from now on.
            log.exception("the index goes on without its background work")

    def _fold(self) -> None:
        with self._lock:
            assert self._cells is not None
            cells, self._folding, self._recent = self._cells, self._recent, set()
        cells.replace(self._folding, *self._slots.keys([*self._folding]))
        with self._lock:
            self._folding = set()

    def _train(self) -> None:
        """Train cells on those who are here now. Changes from here on stay recent till folded."""
        with self._lock:
            self._changes, self._trained_on = 0, len(self._slots)
        spans = [*self._slots.spans()]
        _, sample = self._slots.keys(self._some(spans, sample_size(self._trained_on)))
        cells = None
        if self._trained_on > EXACT_UP_TO and len(sample):  # and not all are average users
            cells = Cells(self._trained_on, sample)
            for span in spans:
                cells.replace((), *self._slots.keys(span))
            _, keys = self._slots.keys(self._some(spans, _CHECKED))
            near = self._slots.nearest(keys, 10).tolist()
            with self._lock:  # who came meanwhile is in no cell, however many are opened
                truth = [[slot for slot in row if slot not in self._recent] for row in near]
            recall = cells.open_enough(keys, truth)
            log.info("%d users sorted into cells, recall@10 %.3f", len(cells), recall)
        with self._lock:
            self._cells = cells
            if cells is None:
                self._recent = set()

    @staticmethod
    def _some(spans: list[range], count: int) -> list[int]:
        used = spans[-1].stop
        chosen = np.random.default_rng(used).choice(used, min(used, count), replace=False)
        slots: list[int] = chosen.tolist()
        return slots
