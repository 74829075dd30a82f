"""The user index: exact embeddings by id, and FAISS for "who has a taste like this".

A disposable cache of the database.

    index.py ──┬─► index_storage.py   embeddings by slot; brute force; the last word on an answer
               ├─► index_search.py    tiers that propose slots ─► index_cells.py   FAISS
               └─► index_file.py      save and load

An id is ``project/name``; whatever stands before the last ``/`` has slots and tiers of its own. So
nothing that is stored for one project can turn up in, or crowd anybody out of, another's answer,
and a small project is searched exactly however large its neighbours are.

``put``, ``get`` and ``delete`` take microseconds and never wait for a search or for FAISS.
(``IndexIDMap2`` would not do: adding an id twice keeps both, removing passes over everything, and
after ``reset()`` an old id returns another user's vector, faiss #5578.)
"""

from __future__ import annotations

import heapq
import os
import threading
from pathlib import Path

import numpy as np

from ppd_serve.preferences import index_file
from ppd_serve.preferences.index_file import IndexFileError
from ppd_serve.preferences.index_search import Neighbours
from ppd_serve.preferences.index_storage import Slots, Users, search_key

__all__ = ["IndexFileError", "UserIndex"]


class _Project:
    """Some slots and who is nearest in them."""

    def __init__(self, rows: int, dim: int) -> None:
        self.slots = Slots(rows, dim)
        self.neighbours = Neighbours(self.slots)


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
        self._projects: dict[str, _Project] = {}
        self._saving = threading.Lock()
        self._deleting = threading.Lock()
        self._deletions = 0

    def __len__(self) -> int:
        return sum(len(project.slots) for project in [*self._projects.values()])

    def __contains__(self, id: str) -> bool:
        project = self._projects.get(_project_of(id))
        return project is not None and id in project.slots

    def put(self, id: str, version: int, embedding: np.ndarray) -> bool:
        """Keep ``embedding`` (finite, ``[rows, dim]``) unless a version at least as high is here.

        True if it was kept; ``get`` and ``search`` know it then. An embedding whose mean row is
        zero (the average user) is kept but not found by ``search``. Raises ``ValueError`` for
        another shape or a number that is none.
        """
        values = np.asarray(embedding, dtype=np.float32)
        if values.shape != (self.rows, self.dim):
            raise ValueError(f"embedding is {values.shape}, not {(self.rows, self.dim)}")
        if not np.isfinite(values).all():
            raise ValueError("embedding is not finite")
        project = self._project(_project_of(id))
        slot = project.slots.put(id, version, values)
        if slot is not None:
            project.neighbours.changed(slot)
        return slot is not None

    def get(self, id: str) -> tuple[int, np.ndarray] | None:
        """Version and embedding (a copy), bit for bit as it was put."""
        project = self._projects.get(_project_of(id))
        return None if project is None else project.slots.get(id)

    def delete(self, id: str) -> bool:
        """False when there was none. Who is deleted is in no file that is saved from now on."""
        project = self._projects.get(_project_of(id))
        if project is None:
            return False
        with self._deleting:
            slot = project.slots.delete(id)
            self._deletions += slot is not None
        if slot is not None:
            project.neighbours.changed(slot)
        return slot is not None

    def search(
        self, id_or_key: str | np.ndarray, k: int, prefix: str = ""
    ) -> list[tuple[str, float]]:
        """The ``k`` nearest ids and their cosines, best first.

        ``id_or_key``: an id, which is left out of its own answer, or a search key ``[dim]`` of any
        length. ``prefix``: one project, with its ``/``, or all of them. A zero key is near to
        nobody. Exact while a project is small, else recall@10 is 0.95 and more (measured when its
        cells are trained); the cosines are exact always. Raises ``KeyError`` for an unknown id and
        ``ValueError`` for a prefix that is no whole project.
        """
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} does not end with a slash")
        own = id_or_key if isinstance(id_or_key, str) else None
        if isinstance(id_or_key, str):
            holder = self._projects.get(_project_of(id_or_key))
            if holder is None:
                raise KeyError(id_or_key)
            key = holder.slots.key(id_or_key)
        else:
            key = search_key(np.asarray(id_or_key, np.float64).reshape(self.dim))
        if k < 1 or not key.any():
            return []
        wanted = [prefix[:-1]] if prefix else [*self._projects]
        found = [
            item
            for name in wanted
            if (project := self._projects.get(name)) is not None
            for item in project.neighbours.nearest(key, k, own)
        ]
        return heapq.nsmallest(k, found, key=lambda item: (-item[1], item[0]))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the index so that a reader sees the old file or the new one, whole, whatever
        happens meanwhile. Raises ``OSError``.

        Others may write while it does. The file then holds some of what comes after its
        ``sequence``, which does no harm: whoever loads it is told those changes again, in order.
        But it never holds anybody who was deleted before it took its place.
        """
        path = index_file.path_in(directory)
        with self._saving:
            while True:
                deletions = self._deletions
                header = index_file.Header(
                    self.space, self.rows, self.dim, self.source, self.sequence
                )
                users = (
                    some for project in [*self._projects.values()] for some in project.slots.users()
                )
                beside = index_file.write_beside(path, header, users)
                with self._deleting:
                    if self._deletions == deletions:
                        os.replace(beside, path)
                        break
                beside.unlink(missing_ok=True)
            index_file.sync(path.parent)
        return path

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Take over what ``save`` wrote, in place of what is here.

        Raises ``IndexFileError``, and changes nothing, when the file is missing or torn, or when
        its space, its shape or its format is another one.
        """
        loaded = UserIndex(self.space, self.rows, self.dim)
        path = index_file.path_in(directory)
        place = index_file.read(path, self.space, self.rows, self.dim, loaded._take)
        self.source, self.sequence = place
        self._projects = loaded._projects
        for project in self._projects.values():
            project.neighbours.tend()

    def settle(self) -> None:
        """Return when the background work that is due is done: for tests and benchmarks."""
        for project in [*self._projects.values()]:
            project.neighbours.settle()

    def _take(self, users: Users) -> None:
        self._project(_project_of(users.names[0])).slots.extend(users)

    def _project(self, name: str) -> _Project:
        # setdefault is one step for all threads: two of them get the same project.
        found = self._projects.get(name)
        return found or self._projects.setdefault(name, _Project(self.rows, self.dim))


def _project_of(id: str) -> str:
    return id.rpartition("/")[0]
