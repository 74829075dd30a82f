"""What counts as a picture: bytes, a path, what can save itself, or one the server has."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import IO, Any, Protocol

from .models import ImageRef


class Savable(Protocol):
    """Anything with PIL's ``save``, so that PIL need not be installed."""

    def save(self, fp: IO[bytes], format: str) -> Any: ...


Picture = bytes | str | os.PathLike[str] | Savable
"""Encoded bytes (PNG, JPEG, WebP), the path of such a file, or a PIL image (sent as PNG)."""


def encoded(picture: Picture) -> bytes:
    """The bytes of a picture. Raises OSError if it is a path that cannot be read."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def as_json(picture: Picture | ImageRef) -> dict[str, str]:
    """The interface's IMG: a reference for what the server already holds, else the bytes."""
    if isinstance(picture, ImageRef):
        return {"image_id": picture.image_id}
    return {"b64_json": base64.b64encode(encoded(picture)).decode()}
