"""An archive is saved whole or not at all, in both clients."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ppd_client import AsyncClient, Client, ConnectionFailed, NotFound


def archive() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as files:
        files.writestr("user.json", "{}" * 100_000)
    return written.getvalue()


async def export(server: Any, kind: str, path: Path) -> None:
    if kind == "sync":
        with server.client() as client:
            client.export_user("ann", path)
    else:
        async with server.async_client() as client:
            await client.export_user("ann", path)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_archive_is_saved(server, kind, tmp_path: Path):
    whole, path = archive(), tmp_path / "ann.zip"
    path.write_bytes(b"an older one")
    server.says(httpx.Response(200, content=whole))
    await export(server, kind, path)
    assert path.read_bytes() == whole and server.asked() == ["GET /users/ann/export"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_is_not_there_or_not_whole_leaves_no_file(server, kind, tmp_path: Path):
    server.refuses(404, "not-found")
    with pytest.raises(NotFound):
        await export(server, kind, tmp_path / "ann.zip")
    server.says(httpx.Response(200, content=archive()[:-30]))
    with pytest.raises(ConnectionFailed, match="before its end"):
        await export(server, kind, tmp_path / "ann.zip")
    assert list(tmp_path.iterdir()) == []


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The first half of an archive. Then the connection breaks."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield archive()[:1000]
        raise httpx.ReadError("gone")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for data in self:
            yield data

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_broken_connection_leaves_no_file_and_is_given_back(kind, tmp_path: Path):
    stream = Broken()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=stream))
    with pytest.raises(ConnectionFailed, match="gone"):
        if kind == "sync":
            Client("http://server", transport=transport).export_user("ann", tmp_path / "a.zip")
        else:
            client = AsyncClient("http://server", transport=transport)
            await client.export_user("ann", tmp_path / "a.zip")
    assert stream.closed == 1 and list(tmp_path.iterdir()) == []
