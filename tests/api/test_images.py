"""What counts as a picture."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from ppd_serve.api.images import check_image, decode_base64
from ppd_serve.api.schemas import LIMITS
from ppd_serve.errors import BadImage
from tests.api.doubles import png


def header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_good_pictures(kind: str) -> None:
    image = check_image(png((20, 10), kind=kind), "f")
    assert (image.width, image.height) == (20, 10)
    assert image.media_type == f"image/{kind.lower()}"


def test_a_photo_with_a_second_picture_inside_is_a_jpeg() -> None:
    """Phones write a depth or gain map, or a preview, behind the picture itself (MPF)."""
    buffer = io.BytesIO()
    inside = [Image.new("L", (4, 2))]
    Image.new("RGB", (20, 10)).save(buffer, "MPO", save_all=True, append_images=inside)
    image = check_image(buffer.getvalue(), "f")
    assert (image.media_type, image.width, image.height) == ("image/jpeg", 20, 10)


def noisy(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, kind)
    return buffer.getvalue()


BAD = {
    "empty": b"",
    "text": b"this is not a picture, whatever its name says",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "gif": png(kind="GIF"),
    "bmp": png(kind="BMP"),
    "truncated png": noisy("PNG")[:-1000],
    "truncated jpeg": noisy("JPEG")[:-1000],
    "truncated webp": noisy("WEBP")[:-1000],
    "bomb": header_only(60_000, 60_000),
    "40 MP": header_only(8000, 5000),
    "just over": header_only(8000, 4001),
    "empty pixels": header_only(4000, 4000),
    "needle": png((1000, 1)),
    "too many bytes": png() + bytes(LIMITS.image_bytes),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_name_the_field(name: str) -> None:
    with pytest.raises(BadImage) as caught:
        check_image(BAD[name], "pairs.0.preferred.b64_json")
    assert caught.value.field == "pairs.0.preferred.b64_json"


@pytest.mark.parametrize("text", ["*", "abc", "ab c=", "aGk=\n", "é", "\ud800"])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(BadImage):
        decode_base64(text, "f")
