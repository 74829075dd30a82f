"""Picture bytes by content, on any fsspec file system. Who uses which is the database's business.

A blob's name is the SHA-256 of its bytes, so writing one twice is writing it once, and a blob
that exists is whole: the bytes come under their name only when they are on disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

_NAME = re.compile(r"[0-9a-f]{64}")
_PART_SECONDS = 3600


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Blobs:
    """Raises ``OSError`` when the store is away, ``FileNotFoundError`` for a blob it hasn't."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._fs.makedirs(self._root, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Write the bytes, durably, unless they are there already; their digest."""
        digest = digest_of(data)
        if not self.exists(digest):
            path = self._path(digest)
            self._fs.makedirs(os.path.dirname(path), exist_ok=True)
            if self._local:
                _write_durably(Path(path), data)
            else:
                self._fs.pipe_file(path, data)
        return digest

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._path(digest)))

    def get(self, digest: str) -> bytes:
        return bytes(self._fs.cat_file(self._path(digest)))

    def delete(self, digest: str) -> None:
        """Also when it is not there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(digest))

    def digests(self) -> Iterator[str]:
        """All that there are. On the way, drops what an interrupted write has left."""
        for path in self._fs.find(self._root):
            name = path.rsplit("/", 1)[-1]
            if _NAME.fullmatch(name):
                yield name
            elif self._local and name.endswith(".part"):
                part = Path(path)
                with suppress(FileNotFoundError):  # its writer has just finished
                    if time.time() - part.stat().st_mtime > _PART_SECONDS:
                        part.unlink()

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _write_durably(path: Path, data: bytes) -> None:
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    sync_directory(path.parent.parent)  # the two-letter directory may be new as well


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
