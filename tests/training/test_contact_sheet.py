"""Sheets: every picture where its labels say, the preferred one framed, no word outside."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.contact_sheet import (
    CHOSEN,
    GAP,
    LABEL_WIDTH,
    MARGIN,
    PAPER,
    PairShown,
    Row,
    grid,
    stack,
    strip,
    title,
)

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)


def plain(colour: tuple[int, int, int], side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_a_grid_puts_each_picture_under_its_heading_and_beside_its_label() -> None:
    side = 40
    rows = [Row("above", [plain(RED), plain(BLUE)]), Row("below", [plain(GREEN), plain(RED)])]

    sheet = grid(["left", "right"], rows, side)

    def middle(line: int, column: int) -> tuple[int, ...]:
        bottom = sheet.height - (1 - line) * (side + GAP)
        pixel = sheet.getpixel(
            (LABEL_WIDTH + column * (side + GAP) + side // 2, bottom - side // 2)
        )
        assert isinstance(pixel, tuple)
        return pixel

    assert [middle(y, x) for y in (0, 1) for x in (0, 1)] == [RED, BLUE, GREEN, RED]
    assert sheet.width == LABEL_WIDTH + 2 * side + GAP


def test_a_row_with_a_missing_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="2 pictures"):
        grid(["left", "right"], [Row("short", [plain(RED)])])


def test_headings_wrap_inside_their_column() -> None:
    heading = "three quarters of one person and a quarter of the other"
    one, two = (grid([text], [Row("", [plain(RED)])], 90) for text in ("short", heading))

    assert two.width == one.width
    assert two.height > one.height


def test_the_longest_label_is_written_to_its_end() -> None:
    words = "a label that goes on and on " * 4
    short, long = (grid(["one"], [Row(text, [plain(RED)])] * 2, 40) for text in ("short", words))
    assert long.height > short.height
    last = np.asarray(long)[-20:, :LABEL_WIDTH]
    assert (last < 128).any()  # ink


@pytest.mark.parametrize("preferred", [0, 1])
def test_only_the_preferred_picture_of_a_pair_is_framed(preferred: int) -> None:
    side = 32
    pair = PairShown("a caption", (plain(RED, side), plain(BLUE, side)), preferred)

    pixels = np.asarray(strip([pair], side))

    _, columns = np.nonzero((pixels == CHOSEN).all(-1))
    picture = np.nonzero((pixels == (RED, BLUE)[preferred]).all(-1))[1]
    assert columns.min() < picture.min() < picture.max() < columns.max()
    assert columns.max() - columns.min() < side + 12


def test_a_stack_keeps_every_block_whole_inside_a_margin() -> None:
    blocks = [title("Heading", "and some words", 120), plain(RED, 50)]

    sheet = np.asarray(stack(blocks))

    assert (sheet == RED).all(-1).sum() == 50 * 50
    for edge in (sheet[:MARGIN], sheet[-MARGIN:], sheet[:, :MARGIN], sheet[:, -MARGIN:]):
        assert (edge == PAPER).all()


def test_a_long_text_makes_a_title_higher_not_wider() -> None:
    short, long = (title("Heading", "some words " * n, 200) for n in (1, 20))

    assert (short.width, long.width) == (200, 200)
    assert long.height > short.height
