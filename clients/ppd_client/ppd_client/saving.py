"""An archive, too large to hold, written to a file as it comes: the whole of it, or no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import IO
from zipfile import is_zipfile

import httpx

from .errors import ConnectionFailed


def save(answer: httpx.Response, path: str | os.PathLike[str]) -> None:
    with closing(answer), _whole(Path(path)) as file:
        for data in answer.iter_bytes():
            file.write(data)


async def save_awaited(answer: httpx.Response, path: str | os.PathLike[str]) -> None:
    async with aclosing(answer):
        with _whole(Path(path)) as file:
            async for data in answer.aiter_bytes():
                file.write(data)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that comes under its name once it is an archive with an end."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        if not is_zipfile(part):
            raise ConnectionFailed("the archive ended before its end")
        part.replace(path)
    except httpx.TransportError as cause:
        raise ConnectionFailed(f"the archive broke off: {cause!r}") from cause
    finally:
        part.unlink(missing_ok=True)
