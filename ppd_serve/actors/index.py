"""The index's actor: embeddings by id, and a file so that a restart need not read them all."""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppd_serve.gateway.ports import IndexRow
from ppd_serve.logs import LogFormat, configure
from ppd_serve.meters import Beat

log = logging.getLogger(__name__)


class UserIndex:
    """Embeddings by id. Its file is a convenience: whatever is wrong with it, the gateway sends
    what is missing."""

    def __init__(
        self,
        directory: str,
        space: str,
        shape: tuple[int, int],
        save_seconds: float,
        log_format: LogFormat | None = None,
    ) -> None:
        from ppd_serve.preferences.index import IndexFileError
        from ppd_serve.preferences.index import UserIndex as Index

        if log_format is not None:
            configure(log_format)
        self._replica = uuid.uuid4().hex[:8]
        self._directory, self._save_seconds = Path(directory), save_seconds
        self._empty: Callable[[], Index] = lambda: Index(space, *shape)
        self._index, self._saved = self._empty(), 0
        try:
            self._index.load(directory)
            self._saved = self._index.sequence
        except IndexFileError:
            pass
        self._writing = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None

    async def apply(self, source: str, after: int, rows: list[IndexRow]) -> int:
        if self._saver is None:
            self._saver = asyncio.create_task(self._keep_saved())
        async with self._writing:
            if after == -1 or source != self._index.source:
                self._index, self._saved = self._empty(), -1
                self._index.source = source
            if after not in (-1, self._index.sequence):
                return self._index.sequence
            for row in rows:
                if row.values is not None:
                    self._put(row.id, row.version, row.values)
                elif self._index.delete(row.id):
                    # Who is deleted is deleted from the file, too, and at once.
                    shutil.rmtree(self._directory, ignore_errors=True)
                self._index.sequence = row.sequence
        return self._index.sequence

    def _put(self, id: str, version: int, values: np.ndarray) -> None:
        try:
            self._index.put(id, version, values)
        except ValueError as error:  # one bad row must not keep all that follow it out
            log.error("%s is left out of the index: %s", id, error)

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        return self._index.get(id)

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        return await asyncio.to_thread(self._index.search, key, k, prefix)

    async def beat(self) -> Beat:
        return Beat(self._replica, {"users": len(self._index)})

    async def _keep_saved(self) -> None:
        while True:
            await asyncio.sleep(self._save_seconds)
            if self._index.sequence != self._saved:
                try:
                    await self._save()
                except Exception as error:  # a full disk, say: it may have room the next time
                    log.warning("the index was not saved: %r", error)

    async def _save(self) -> None:
        index, sequence = self._index, self._index.sequence
        await asyncio.to_thread(index.save, self._directory)
        if index is self._index:
            self._saved = sequence
