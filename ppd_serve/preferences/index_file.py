"""The file of the user index: written beside the old one and moved over it, read only if whole.

    sha256 of the rest · {format, space, rows, dim, source, sequence}⏎
    some users at a time: {"names": […]}⏎ · versions int64 [N] · embeddings float32 [N, rows·dim]
    {"names": []}⏎

Numbers are little-endian. Whoever reads sees the old file or the new one, whatever happens while it
is written; what a killed process leaves beside it, the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppd_serve.preferences.index_storage import Users

_NAME = "users.index"
_FORMAT = "ppd-user-index-2"
_DIGEST = hashlib.sha256().digest_size


class IndexFileError(Exception):
    """The saved index is missing, torn, or of another space or shape: rebuild it."""


class Header(NamedTuple):
    """What the file is of; see ``UserIndex``."""

    space: str
    rows: int
    dim: int
    source: str
    sequence: int


def path_in(directory: str | os.PathLike[str]) -> Path:
    return Path(directory) / _NAME


def write_beside(path: Path, header: Header, users: Iterable[Users]) -> Path:
    """A whole, synced file beside ``path``. Raises ``OSError``, and leaves nothing then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{_NAME}.*"):
        left.unlink(missing_ok=True)
    beside = path.with_name(f".{_NAME}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            file.write(bytes(_DIGEST))
            digest = hashlib.sha256()
            for part in _parts(header, users):
                file.write(part)
                digest.update(part)
            file.seek(0)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def sync(directory: Path) -> None:
    """Have a rename in ``directory`` survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(
    path: Path, space: str, rows: int, dim: int, take: Callable[[Users], None]
) -> tuple[str, int]:
    """Hand everybody to ``take``, some at a time; then the source and the sequence.

    Raises ``IndexFileError``, before anybody is handed over, when the file is missing or torn or
    of another space, shape or format.
    """
    try:
        with open(path, "rb") as file:
            if file.read(_DIGEST) != hashlib.file_digest(file, "sha256").digest():
                raise IndexFileError(f"{path}: torn, its checksum is wrong")
            file.seek(_DIGEST)
            header = _header(file)
            place = {"source": header.pop("source", ""), "sequence": header.pop("sequence", 0)}
            wanted = {"format": _FORMAT, "space": space, "rows": rows, "dim": dim}
            if header != wanted:
                raise IndexFileError(f"{path}: holds {header}, wanted {wanted}")
            while users := _users(file, rows * dim):
                take(users)
            return place["source"], place["sequence"]
    except OSError as error:
        raise IndexFileError(f"{path}: {error.strerror}") from error


def _parts(header: Header, users: Iterable[Users]) -> Iterator[bytes | memoryview]:
    yield _line({"format": _FORMAT, **header._asdict()})
    for some in users:
        yield _line({"names": some.names})
        yield some.versions.astype("<i8").data.cast("B")
        yield some.values.astype("<f4", order="C", copy=False).data.cast("B")
    yield _line({"names": []})


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _header(file: BinaryIO) -> dict[str, Any]:
    try:
        found = json.loads(file.readline())
    except ValueError:  # the file of an earlier format
        return {}
    return found if isinstance(found, dict) else {}


def _users(file: BinaryIO, width: int) -> Users | None:
    names: list[str] = json.loads(file.readline())["names"]
    if not names:
        return None
    versions = np.frombuffer(file.read(8 * len(names)), "<i8")
    values = np.frombuffer(file.read(4 * len(names) * width), "<f4").reshape(-1, width)
    return Users(names, versions, values)
