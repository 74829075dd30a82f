"""Where the user index keeps its embeddings: exact, by slot, in blocks that never move.

A slot holds one user: name, version, embedding. Who is deleted leaves an empty slot to the next new
name, so a put and a delete cost the same however many users there are. Storage grows by a block
at a time: at a million users of 256 numbers nobody waits until a gigabyte is copied, and a scan may
read the blocks while others write. Such a scan may see a row half written; it only proposes slots,
and ``rank`` reads what it answers under the lock.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 4096  # slots; their memory is untouched, so not the process's yet, until they are filled
_LARGEST = float(np.finfo(np.float32).max)


class Users(NamedTuple):
    """Some users: ``N`` names, versions int64 ``[N]`` and embeddings float32 ``[N, rows·dim]``."""

    names: list[str]
    versions: np.ndarray
    values: np.ndarray


class _Block(NamedTuple):
    """``values`` float32 ``[BLOCK, rows·dim]``; ``scale`` float32 ``[BLOCK]``: what takes the sum
    of rows to the search key, or 0 for a slot that nobody can find."""

    values: np.ndarray
    scale: np.ndarray


class Slots:
    """Embeddings float32 ``[rows, dim]`` by name. All methods are thread-safe."""

    def __init__(self, rows: int, dim: int) -> None:
        self.rows, self.dim = rows, dim
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []
        self._versions: list[int] = []
        self._free: list[int] = []
        self._blocks: list[_Block] = []

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def put(self, name: str, version: int, values: np.ndarray) -> int | None:
        """The slot of ``values`` ``[rows, dim]``; none if a version as high is there."""
        (scale,) = _scales(values[None])
        with self._lock:
            slot = self._slots.get(name)
            if slot is not None and self._versions[slot] >= version:
                return None
            if slot is None:
                slot = self._free.pop() if self._free else self._new_slot()
                self._slots[name] = slot
                self._names[slot] = name
            self._versions[slot] = version
            block, place = self._blocks[slot // BLOCK], slot % BLOCK
            block.values[place] = values.ravel()
            block.scale[place] = scale
            return slot

    def get(self, name: str) -> tuple[int, np.ndarray] | None:
        """Version and embedding (a copy)."""
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                return None
            values = self._blocks[slot // BLOCK].values[slot % BLOCK].copy()
            version = self._versions[slot]
        return version, values.reshape(self.rows, self.dim)

    def delete(self, name: str) -> int | None:
        """The slot that is empty now; none if it held nobody."""
        with self._lock:
            slot = self._slots.pop(name, None)
            if slot is None:
                return None
            self._names[slot] = None
            block, place = self._blocks[slot // BLOCK], slot % BLOCK
            block.values[place] = 0
            block.scale[place] = 0
            self._free.append(slot)
            return slot

    def extend(self, users: Users) -> None:
        """Put many new names at once, into slots of their own."""
        scales = _scales(users.values.reshape(-1, self.rows, self.dim))
        with self._lock:
            for name, version, values, scale in zip(
                users.names, users.versions.tolist(), users.values, scales, strict=True
            ):
                slot = self._new_slot()
                self._slots[name] = slot
                self._names[slot], self._versions[slot] = name, version
                block, place = self._blocks[slot // BLOCK], slot % BLOCK
                block.values[place], block.scale[place] = values, scale

    def users(self) -> Iterator[Users]:
        """Everybody, a block at a time, each block as it is at one moment."""
        for number, block in enumerate([*self._blocks]):
            with self._lock:
                start = number * BLOCK
                names = self._names[start : start + BLOCK]
                held = [place for place, name in enumerate(names) if name is not None]
                versions = [self._versions[start + place] for place in held]
                values = block.values[held]
            if held:
                yield Users([n for n in names if n is not None], np.array(versions), values)

    def keys(self, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Those of ``slots`` that can be found, int64 ``[N]``, and their search keys ``[N, dim]``,
        L2-normalised, float32. A slot written meanwhile may be read half."""
        values, scales = self._gather(slots)
        (found,) = np.nonzero(scales)
        keys = _search_keys(values[found].reshape(-1, self.rows, self.dim))
        return np.array(slots, np.int64)[found], keys.astype(np.float32)

    def key(self, name: str) -> np.ndarray:
        """The search key of ``name``, float64 ``[dim]``, zero for the average user. Raises
        ``KeyError``."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        (key,) = _search_keys(found[1][None])
        return key

    def spans(self) -> Iterator[range]:
        """All slots ever used, a block at a time."""
        for start in range(0, len(self._names), BLOCK):
            yield range(start, min(start + BLOCK, len(self._names)))

    def nearest(self, keys: np.ndarray, count: int) -> np.ndarray:
        """Slots ``[Q, ≤ count]`` nearest to search keys ``[Q, dim]``, in no order: everybody is
        looked at. Slots that cannot be found fill up where there are not enough."""
        wide = np.tile(keys.astype(np.float32), self.rows).T
        best = np.zeros((len(keys), 0), np.float32)
        slots = np.zeros((len(keys), 0), np.int64)
        for span in self.spans():
            block = self._blocks[span.start // BLOCK]
            values, scale = block.values[: len(span)], block.scale[: len(span)]
            scores = np.where(scale > 0, (values @ wide).T * scale, -np.inf)
            best = np.concatenate([best, scores], 1)
            here = np.broadcast_to(np.arange(span.start, span.stop), scores.shape)
            slots = np.concatenate([slots, here], 1)
            if best.shape[1] > count:
                kept = np.argpartition(-best, count - 1, 1)[:, :count]
                best = np.take_along_axis(best, kept, 1)
                slots = np.take_along_axis(slots, kept, 1)
        return slots

    def nearest_of(self, slots: Sequence[int], key: np.ndarray, count: int) -> Sequence[int]:
        """The ``count`` of ``slots`` nearest to a search key ``[dim]``."""
        if len(slots) <= count:
            return slots
        values, scales = self._gather(slots)
        scores = (values @ np.tile(key.astype(np.float32), self.rows)) * scales
        scores[scales == 0] = -np.inf
        return [slots[i] for i in np.argpartition(-scores, count - 1)[:count]]

    def rank(
        self, key: np.ndarray, slots: Collection[int], k: int, leave_out: str | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` of ``slots`` nearest to a search key ``[dim]``: who holds them now, and the
        cosine with what they hold now, in float64; best first."""
        with self._lock:
            names = [self._names[slot] for slot in slots]
            values, scales = self._gather(slots)
        scores = _search_keys(values.reshape(-1, self.rows, self.dim)) @ key
        found = [
            (name, min(1.0, max(-1.0, score)))
            for name, score, scale in zip(names, scores.tolist(), scales.tolist(), strict=True)
            if name is not None and name != leave_out and scale > 0
        ]
        return heapq.nsmallest(k, found, key=lambda item: (-item[1], item[0]))

    def _gather(self, slots: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values ``[N, rows·dim]`` and scales ``[N]``; a range lies in one block."""
        if isinstance(slots, range):
            block, start = self._blocks[slots.start // BLOCK], slots.start % BLOCK
            part = slice(start, start + len(slots))
            return block.values[part].copy(), block.scale[part].copy()
        values = np.empty((len(slots), self.rows * self.dim), np.float32)
        scales = np.empty(len(slots), np.float32)
        for i, slot in enumerate(slots):
            block, place = self._blocks[slot // BLOCK], slot % BLOCK
            values[i], scales[i] = block.values[place], block.scale[place]
        return values, scales

    def _new_slot(self) -> int:
        slot = len(self._names)
        if slot == len(self._blocks) * BLOCK:
            values = np.zeros((BLOCK, self.rows * self.dim), np.float32)
            self._blocks.append(_Block(values, np.zeros(BLOCK, np.float32)))
        self._names.append(None)
        self._versions.append(0)
        return slot


def _search_keys(embeddings: np.ndarray) -> np.ndarray:
    """``[N, rows, dim]`` → float64 ``[N, dim]``: the L2-normalised mean row, zero where it is zero.

    In float64, where the square of no float32 overflows or vanishes.
    """
    means = embeddings.mean(axis=1, dtype=np.float64)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.divide(means, norms, out=np.zeros_like(means), where=norms > 0)


def _scales(embeddings: np.ndarray) -> np.ndarray:
    """``[N, rows, dim]`` → ``[N]``: the sum of an embedding's rows times this is its search key."""
    norms = np.linalg.norm(embeddings.sum(axis=1, dtype=np.float64), axis=1)
    return np.minimum(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0), _LARGEST)


def search_key(key: np.ndarray) -> np.ndarray:
    """A vector of any length ``[dim]`` → the search key, float64 ``[dim]``; zero stays zero."""
    (unit,) = _search_keys(key[None, None])
    return unit
