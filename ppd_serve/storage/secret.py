"""A random secret in a file: made once, the same for everybody who starts here."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from ppd_serve.errors import PPDError
from ppd_serve.storage.blobs import sync_directory

SECRET_BYTES = 32


def kept_secret(path: Path) -> bytes:
    """The secret in ``path``, made now if there is none. Raises ``PPDError`` for a file that is
    too short to be one: with an empty secret, anybody could sign."""
    if not path.exists():
        _make(path)
    secret = path.read_bytes()
    if len(secret) < SECRET_BYTES:
        raise PPDError(
            f"{path} has {len(secret)} bytes, a secret has at least {SECRET_BYTES}: "
            "put the right file there, or delete it and a new one is made"
        )
    return secret


def _make(path: Path) -> None:
    """A whole file appears under its name or none does, and the first of many to get there wins."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
    finally:
        os.unlink(part)
    sync_directory(path.parent)
