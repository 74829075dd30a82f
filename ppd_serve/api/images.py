"""Pictures that come in: looked at completely before anything is stored."""

from __future__ import annotations

import base64
import binascii
import io
import warnings

from PIL import Image

from ppd_serve.api.schemas import LIMITS
from ppd_serve.errors import BadImage
from ppd_serve.storage.values import NewImage

FORMATS = ("PNG", "JPEG", "WEBP")
# What Pillow then says it is. MPO is a JPEG with more pictures behind it, as phones write them;
# like every other reader we see the first.
MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
}


def decode_base64(text: str, field: str) -> bytes:
    """Strict base64. Raises ``BadImage`` naming ``field``."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise BadImage("Not base64", field=field) from None


def check_image(data: bytes, field: str) -> NewImage:
    """Decode a picture to the end, once, and throw the pixels away.

    data: PNG, JPEG or WebP. Its header is judged before any pixel is decoded, so that a bomb
    costs nothing. Blocks for up to a second on a large picture. Raises ``BadImage``.
    """
    if len(data) > LIMITS.image_bytes:
        raise BadImage(f"More than {LIMITS.image_bytes} bytes", field=field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our bound is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > LIMITS.image_pixels:
                    raise BadImage(f"More than {LIMITS.image_pixels} pixels", field=field)
                if max(width, height) > LIMITS.image_aspect * min(width, height):
                    raise BadImage(
                        f"One side is more than {LIMITS.image_aspect} times the other", field=field
                    )
                media_type = MEDIA_TYPES[str(image.format)]
                image.load()
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"More than {LIMITS.image_pixels} pixels", field=field) from None
    except Exception:  # Pillow's decoders raise nearly anything on broken input
        raise BadImage("Not a complete PNG, JPEG or WebP picture", field=field) from None
    return NewImage(data, media_type, width, height)
