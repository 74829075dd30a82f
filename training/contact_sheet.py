"""Pictures side by side with words around them: titles, strips of pairs, labelled grids.

A sheet is a stack of blocks; every block is an RGB image of its own on the same paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image

PAPER = (240, 242, 245)  # cooler than the world's own cream frames, which must stand out
INK = (38, 38, 42)
CHOSEN = (34, 139, 84)  # the frame around a preferred picture
MARGIN, GAP, FRAME = 28, 8, 4
LABEL_WIDTH = 132
TEXT, SMALL, TITLE = 18, 15, 26  # letter heights; the built-in font knows little beyond ASCII


@dataclass(frozen=True)
class Row:
    """One line of a grid: what was asked for, and a picture per column."""

    label: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class PairShown:
    """A choice: the pictures in the order they were offered, ``preferred`` (0 or 1) framed."""

    label: str
    pictures: tuple[Picture, Picture]
    preferred: int


def title(heading: str, text: str, width: int) -> Picture:
    """A heading with a line of smaller text under it."""
    block = _paper(width, _line(TITLE) + GAP + len(_wrapped(text, TEXT, width)) * _line(TEXT))
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), heading, INK, ImageFont.load_default(TITLE))
    _write(draw, (0, _line(TITLE) + GAP), text, TEXT, width)
    return block


def strip(pairs: Sequence[PairShown], side: int = 128) -> Picture:
    """Pairs in one line, their labels underneath. ``side``: of a picture, in pixels."""
    pair_width = 2 * side + GAP + 4 * FRAME
    pitch = pair_width + 3 * GAP
    lines = max(len(_wrapped(pair.label, SMALL, pair_width)) for pair in pairs)
    height = side + 2 * FRAME + GAP + lines * _line(SMALL)
    block = _paper(len(pairs) * pitch - 3 * GAP, height)
    draw = ImageDraw.Draw(block)
    for index, pair in enumerate(pairs):
        left = index * pitch
        for place, picture in enumerate(pair.pictures):
            x = left + FRAME + place * (side + GAP + 2 * FRAME)
            if place == pair.preferred:
                draw.rectangle((x - FRAME, 0, x + side + FRAME - 1, side + 2 * FRAME - 1), CHOSEN)
            block.paste(_fit(picture, side), (x, FRAME))
        _write(draw, (left + FRAME, side + 2 * FRAME + GAP), pair.label, SMALL, pair_width)
    return block


def grid(columns: Sequence[str], rows: Sequence[Row], side: int = 192) -> Picture:
    """Headings over columns, labels left of rows, which are as high as the longest label wants.
    Raises ValueError unless every row is full."""
    if any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} pictures, one per column")
    pitch = side + GAP
    lines = max(len(_wrapped(heading, TEXT, side)) for heading in columns)
    top = lines * _line(TEXT) + GAP
    told = max((len(_wrapped(row.label, TEXT, LABEL_WIDTH - GAP)) for row in rows), default=0)
    high = max(pitch, told * _line(TEXT) + GAP)
    block = _paper(LABEL_WIDTH + len(columns) * pitch - GAP, top + len(rows) * high - GAP)
    draw = ImageDraw.Draw(block)
    for index, heading in enumerate(columns):
        _write(draw, (LABEL_WIDTH + index * pitch, 0), heading, TEXT, side)
    for line, row in enumerate(rows):
        y = top + line * high
        _write(draw, (0, y), row.label, TEXT, LABEL_WIDTH - GAP)
        for index, picture in enumerate(row.pictures):
            block.paste(_fit(picture, side), (LABEL_WIDTH + index * pitch, y))
    return block


def stack(blocks: Sequence[Picture]) -> Picture:
    """Blocks under each other, left-aligned, with a margin around the whole."""
    width = max(block.width for block in blocks) + 2 * MARGIN
    height = sum(block.height for block in blocks) + (len(blocks) + 1) * MARGIN
    sheet = _paper(width, height)
    y = MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, y))
        y += block.height + MARGIN
    return sheet


def _paper(width: int, height: int) -> Picture:
    return Image.new("RGB", (width, height), PAPER)


def _fit(picture: Picture, side: int) -> Picture:
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _line(size: int) -> int:
    return round(size * 1.3)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """``text`` in lines no wider than ``width`` pixels; a longer word keeps a line of its own."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, width: int
) -> None:
    for index, line in enumerate(_wrapped(text, size, width)):
        place = (at[0], at[1] + index * _line(size))
        draw.text(place, line, INK, ImageFont.load_default(size))
