"""The search keys of many users in FAISS, sorted into cells, of which a search opens a few.

An inverted file over spherical k-means cells, one byte a number (what a byte loses never reaches an
answer: FAISS only proposes slots, and the caller scores what they hold). How many cells a search
opens is measured against brute force on the very users, once they are all in.

Why not another, measured at 100,000 simulated users of 256 numbers: float16 finds no more and takes
a third longer and twice the memory; 4-bit product codes look at everybody in the time that this
takes for a quarter, which pays only where keys have no structure, and nothing can be taken out of
them again, nor out of HNSW.

In FAISS a search must not meet a write, so one lock guards both; assigning vectors to cells only
reads the cells' centres and stays outside. A hash map from slots to their places makes taking a
vector out cost the same however many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import faiss
import numpy as np

_SAMPLES_PER_CELL = 64  # for k-means; FAISS asks for 39 at least
_BATCH = 1024  # vectors written under one hold of the lock: a millisecond or two
_WANTED = 0.98  # recall@10 on users that are in; 0.95 is promised for those that come
_MOST = 8  # a search opens this fraction of the cells at most, whatever the recall

PROPOSALS = 64  # slots proposed for ten answers: room for what a byte confuses


def sample_size(users: int) -> int:
    """How many users' keys ``Cells`` wants to see first."""
    return min(users, _SAMPLES_PER_CELL * _cells(users))


def _cells(users: int) -> int:
    """As many cells as users in a cell: looking at the centres costs as much as at one cell."""
    return round(users**0.5)


class Cells:
    """Search keys, L2-normalised float32 ``[dim]``, by slot. Thread-safe."""

    def __init__(self, users: int, sample: np.ndarray) -> None:
        """For about ``users`` keys, of which ``sample`` ``[N, dim]`` shows where they lie."""
        dim = sample.shape[1]
        self._centres = faiss.IndexFlatIP(dim)
        self._faiss = faiss.IndexIVFScalarQuantizer(
            self._centres, dim, min(_cells(users), len(sample)),
            faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT,
        )  # fmt: skip
        self._faiss.cp.min_points_per_centroid = 1  # a few users too few are no warning's matter
        self._faiss.train(sample)
        self._faiss.set_direct_map_type(faiss.DirectMap.Hashtable)  # type: ignore[attr-defined]
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    def replace(self, gone: Iterable[int], slots: np.ndarray, keys: np.ndarray) -> None:
        """Forget the slots ``gone`` and take ``keys`` ``[N, dim]`` of ``slots`` int64 ``[N]``."""
        gone = np.fromiter(gone, np.int64)
        for start in range(0, len(gone), _BATCH):
            ids = gone[start : start + _BATCH]
            with self._lock:
                self._faiss.remove_ids(faiss.IDSelectorArray(len(ids), faiss.swig_ptr(ids)))
        for start in range(0, len(slots), _BATCH):
            ids, batch = slots[start : start + _BATCH], keys[start : start + _BATCH]
            _, cells = self._centres.search(batch, 1)
            with self._lock:
                self._faiss.add_core(
                    len(ids), *(faiss.swig_ptr(array) for array in (batch, ids, cells))
                )

    def nearest(self, key: np.ndarray, count: int) -> list[int]:
        """About the ``count`` slots nearest to a search key ``[dim]``, best first."""
        with self._lock:
            _, slots = self._faiss.search(key[None].astype(np.float32), count)
        return [slot for slot in slots[0].tolist() if slot >= 0]

    def open_enough(self, keys: np.ndarray, truth: list[list[int]]) -> float:
        """Have a search open as many cells as find ``truth``, those of the slots nearest to each of
        ``keys`` ``[Q, dim]`` that are in. The recall that was reached."""
        wanted = sum(map(len, truth))
        most = max(1, self._faiss.nlist // _MOST)
        probes = 1
        while True:
            self._faiss.nprobe = probes
            proposed = [self.nearest(key, PROPOSALS) for key in keys]
            pairs = zip(truth, proposed, strict=True)
            found = sum(len({*row} & {*near}) for row, near in pairs)
            if found >= _WANTED * wanted or probes == most:
                return found / max(1, wanted)
            probes = min(max(probes + 1, 5 * probes // 4), most)
