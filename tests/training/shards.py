"""Files shaped like Pick-a-Pic's, of small pictures, and rows that are broken in every way."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, format: str = "JPEG", side: int = 16, **options: Any) -> bytes:
    """Noise, which no two seeds share and which doesn't compress. ``options``: Pillow's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def odd_exif() -> bytes:
    """Says that the picture stands on its side, and beside it what Pillow cannot write again."""
    turned = (0x0112).to_bytes(2, "little") + bytes([3, 0, 1, 0, 0, 0, 6, 0, 0, 0])
    odd = (0x010E).to_bytes(2, "little") + bytes([12, 0, 1, 0, 0, 0, 38, 0, 0, 0])
    return b"Exif\0\0II*\0\x08\0\0\0\x02\0" + odd + turned + bytes(4) + bytes(8)


def row(number: int = 0, user: Any = 7, **changed: Any) -> dict[str, Any]:
    """A good row; picture 0 wins."""
    return {
        "user_id": user,
        "caption": f"a cat, {number}",
        "jpg_0": picture(2 * number),
        "jpg_1": picture(2 * number + 1),
        "image_0_uid": f"image-{2 * number}",
        "image_1_uid": f"image-{2 * number + 1}",
        "label_0": 1.0,
        "label_1": 0.0,
        "has_label": True,
        "are_different": True,
        "ranking_id": number,  # like the original, a file may hold more than training needs
        **changed,
    }


def write_shard(
    path: Path, rows: Iterable[Mapping[str, Any]], row_group_size: int | None = None
) -> Path:
    """The types follow from the values, as whoever wrote a broken file would have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)
    return path
