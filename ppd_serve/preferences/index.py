"""The user index: exact embeddings by id, and FAISS for "who has a taste like this".

A disposable cache of the database. Slot ``i`` of ``_embeddings`` and vector ``i`` of the FAISS
index belong together. A deleted id leaves an empty slot for the next new id, so that a put and a
delete cost the same however many users there are. (``IndexIDMap2`` would do neither: adding an id
twice keeps both, removing passes over everything, and after ``reset()`` an old id returns another
user's vector, faiss #5578.)

FAISS vectors have one coordinate more than the search key: 0 in a slot that can be found, −4 in
one that can't. A query has 1 there, so an empty slot scores below −2, worse than any cosine, and
search stays one plain matrix product over all slots.

Reads concurrent with writes are unsafe inside FAISS, so one lock guards both.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

_FILE = "users.index"
_FORMAT = "ppd-user-index-1"
_ABSENT = -4.0


class IndexFileError(Exception):
    """The saved index is missing, torn, or of another space or shape: rebuild it."""


class UserIndex:
    """Embeddings of one space, float32 ``[rows, dim]``, under string ids.

    ``source`` and ``sequence`` are for the caller: the id of the store whose changes this index
    follows, and the number of the last one that it has seen **in order**; they are saved and loaded
    with the vectors. All methods are thread-safe.
    """

    def __init__(self, space: str, rows: int, dim: int) -> None:
        self.space = space
        self.rows = rows
        self.dim = dim
        self.source, self.sequence = "", 0
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._ids: list[str | None] = []
        self._free: list[int] = []
        self._versions: list[int] = []
        self._embeddings = np.zeros((0, rows, dim), np.float32)  # grown by doubling
        self._faiss = faiss.IndexFlatIP(dim + 1)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, id: str) -> bool:
        return id in self._slots

    def put(self, id: str, version: int, embedding: np.ndarray) -> bool:
        """Keep ``embedding`` (finite, ``[rows, dim]``) unless a version at least as high is here.

        True if it was kept. An embedding whose mean row is zero (the average user) is kept but
        not found by ``search``. Raises ``ValueError`` for another shape or a number that is none.
        """
        values = np.array(embedding, dtype=np.float32)
        if values.shape != (self.rows, self.dim):
            raise ValueError(f"embedding is {values.shape}, not {(self.rows, self.dim)}")
        if not np.isfinite(values).all():
            raise ValueError("embedding is not finite")
        (vector,) = _search_vectors(values[None])
        with self._lock:
            slot = self._slots.get(id)
            if slot is not None and self._versions[slot] >= version:
                return False
            if slot is None:
                slot = self._free.pop() if self._free else self._new_slot()
                self._slots[id] = slot
            self._ids[slot] = id
            self._versions[slot] = version
            self._embeddings[slot] = values
            self._vectors()[slot] = vector
            return True

    def get(self, id: str) -> tuple[int, np.ndarray] | None:
        """Version and embedding (a copy), bit for bit as it was put."""
        with self._lock:
            slot = self._slots.get(id)
            if slot is None:
                return None
            return self._versions[slot], self._embeddings[slot].copy()

    def delete(self, id: str) -> bool:
        """False when there was none."""
        with self._lock:
            slot = self._slots.pop(id, None)
            if slot is None:
                return False
            self._ids[slot] = None
            self._embeddings[slot] = 0
            self._vectors()[slot] = 0
            self._vectors()[slot, -1] = _ABSENT
            self._free.append(slot)
            return True

    def search(
        self, id_or_key: str | np.ndarray, k: int, prefix: str = ""
    ) -> list[tuple[str, float]]:
        """The ``k`` nearest ids and their cosines, best first.

        ``id_or_key``: an id, which is left out of its own answer, or a search key ``[dim]`` of any
        length. Only ids that start with ``prefix`` are answered. A zero key is near to nobody.
        Raises ``KeyError`` for an unknown id.
        """
        own = id_or_key if isinstance(id_or_key, str) else None
        with self._lock:
            if own is not None:
                query = self._vectors()[self._slots[own]].copy()
            else:
                key = np.asarray(id_or_key, np.float32)
                (query,) = _search_vectors(key.reshape(1, 1, self.dim))
            if query[-1] == _ABSENT or k < 1 or not self._ids:
                return []
            query[-1] = 1
            wanted = k + 1
            while True:
                found = self._search(query, wanted, own, prefix)
                if len(found) >= k or wanted >= len(self._ids):
                    return found[:k]
                wanted *= 4  # others' ids were in the way: look further

    def _search(
        self, query: np.ndarray, wanted: int, own: str | None, prefix: str
    ) -> list[tuple[str, float]]:
        scores, slots = self._faiss.search(query[None], min(wanted, len(self._ids)))
        found = []
        for score, slot in zip(scores[0].tolist(), slots[0].tolist(), strict=True):
            name = self._ids[slot] if score > -2 else None
            if name is not None and name != own and name.startswith(prefix):
                found.append((name, min(1.0, max(-1.0, score))))
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the index so that a reader sees the old file or the new one, whole, whatever
        happens meanwhile. Raises ``OSError``."""
        with self._lock:
            ids = sorted(self._slots)
            slots = np.array([self._slots[id] for id in ids], np.int64)
            tensors = {
                "embeddings": self._embeddings[slots],
                "versions": np.array([self._versions[slot] for slot in slots], np.int64),
                "ids": np.frombuffer(json.dumps(ids).encode(), np.uint8),
            }
            place = {"source": self.source, "sequence": str(self.sequence)}
            header = {**self._header(), **place}
        payload = save_tensors(tensors, header)
        path = Path(directory) / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{_FILE}.{uuid.uuid4().hex}")
        try:
            with open(beside, "xb") as file:
                file.write(hashlib.sha256(payload).digest())
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Take over what ``save`` wrote, in place of what is here.

        Raises ``IndexFileError``, and changes nothing, when the file is missing or torn, or when
        its space, its shape or its format is another one.
        """
        path = Path(directory) / _FILE
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise IndexFileError(f"{path}: {error.strerror}") from error
        digest, payload = raw[:32], raw[32:]
        if hashlib.sha256(payload).digest() != digest:
            raise IndexFileError(f"{path}: torn, its checksum is wrong")
        header = _metadata(payload)
        source, sequence = header.pop("source", ""), int(header.pop("sequence", 0))
        if header != self._header():
            raise IndexFileError(f"{path}: holds {header}, wanted {self._header()}")
        tensors = load_tensors(payload)
        loaded = UserIndex(self.space, self.rows, self.dim)
        loaded._fill(
            json.loads(tensors["ids"].tobytes()), tensors["versions"], tensors["embeddings"]
        )
        with self._lock:
            self.source, self.sequence = source, sequence
            self._slots, self._ids, self._free = loaded._slots, loaded._ids, loaded._free
            self._versions, self._embeddings = loaded._versions, loaded._embeddings
            self._faiss = loaded._faiss

    def _fill(self, ids: list[str], versions: np.ndarray, embeddings: np.ndarray) -> None:
        self._slots = {id: slot for slot, id in enumerate(ids)}
        self._ids = [*ids]
        self._versions = versions.tolist()
        self._embeddings = embeddings
        if ids:
            self._faiss.add(_search_vectors(embeddings))

    def _header(self) -> dict[str, str]:
        shape = f"{self.rows}x{self.dim}"
        return {"format": _FORMAT, "space": self.space, "shape": shape}

    def _vectors(self) -> np.ndarray:
        """FAISS's own memory, ``[slots, dim + 1]``; valid until the next slot is added."""
        size = self._faiss.ntotal * (self.dim + 1)
        flat: np.ndarray = faiss.rev_swig_ptr(self._faiss.get_xb(), size)
        return flat.reshape(-1, self.dim + 1)

    def _new_slot(self) -> int:
        slot = len(self._ids)
        if slot == len(self._embeddings):
            grown = np.zeros((max(64, 2 * slot), self.rows, self.dim), np.float32)
            grown[:slot] = self._embeddings
            self._embeddings = grown
        self._ids.append(None)
        self._versions.append(0)
        self._faiss.add(np.zeros((1, self.dim + 1), np.float32))
        return slot


def _search_vectors(embeddings: np.ndarray) -> np.ndarray:
    """``[n, rows, dim]`` → ``[n, dim + 1]``: the L2-normalised mean row, and if it can be found.

    In float64, where the square of no float32 overflows or vanishes.
    """
    means = embeddings.mean(axis=1, dtype=np.float64)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    keys = np.divide(means, norms, out=np.zeros_like(means), where=norms > 0)
    marks = np.where(norms > 0, 0, _ABSENT)
    return np.concatenate([keys, marks], axis=1).astype(np.float32)


def _metadata(payload: bytes) -> dict[str, str]:
    """The string metadata of a safetensors file: a length, then JSON."""
    length = int.from_bytes(payload[:8], "little")
    metadata: dict[str, str] = json.loads(payload[8 : 8 + length])["__metadata__"]
    return metadata
