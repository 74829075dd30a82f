"""Choices as Pick-a-Pic v2 names them: from the studio's people to a file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.studio import small_pool
from training.data.choices import choice_of
from training.data.pool import PairSampler, png
from training.data.rows import Row, pair_of, read_rows, studio_choices, studio_rows, write_rows
from training.data.users import people
from training.data.world import CAPTIONS


def test_who_won_survives_the_file(tmp_path: Path) -> None:
    pool = small_pool(24)
    preferred, rejected = PairSampler(pool).draw(people("dev", 5), 4, np.random.default_rng(0))
    path = tmp_path / "rows.parquet"
    assert write_rows(path, studio_rows(pool, preferred, rejected)) == 20

    rows = list(read_rows(path))
    assert {row["label_0"] for row in rows} == {0.0, 1.0}  # either side may win
    assert [row["user_id"] for row in rows] == [user for user in range(5) for _ in range(4)]
    for row, w, x in zip(rows, preferred.flat, rejected.flat, strict=True):
        pair = pair_of(row)
        assert pair is not None and pair.prompt == str(CAPTIONS[pool.captions[w]])
        assert (pair.preferred, pair.rejected) == (png(pool.images[w]), png(pool.images[x]))


@pytest.mark.parametrize(
    "changed", [{"label_0": 0.5, "label_1": 0.5}, {"has_label": False}, {"are_different": False}]
)
def test_what_is_no_choice_is_no_pair(changed: dict[str, object]) -> None:
    pool = small_pool(4, captions=1)
    row = next(iter(studio_rows(pool, np.array([[0]]), np.array([[1]]))))
    assert pair_of(row) is not None
    assert pair_of(Row(**(row | changed))) is None  # type: ignore[typeddict-item]


def test_a_file_of_many_row_groups_is_whole(tmp_path: Path) -> None:
    pool = small_pool(8)
    preferred, rejected = PairSampler(pool).draw(people("dev", 5), 50, np.random.default_rng(0))
    path = tmp_path / "rows.parquet"
    assert write_rows(path, studio_rows(pool, preferred, rejected)) == 250
    assert list(read_rows(path)) == list(studio_rows(pool, preferred, rejected))
    assert write_rows(path, iter(())) == 0


def test_the_studio_gives_the_choices_that_its_rows_tell_of() -> None:
    pool = small_pool(24)
    preferred, rejected = PairSampler(pool).draw(people("dev", 5), 4, np.random.default_rng(0))
    choices = list(studio_choices(pool, preferred, rejected, name="dev"))
    from_rows = [choice_of(row) for row in studio_rows(pool, preferred, rejected)]
    assert [c.pair for c in choices] == [c.pair for c in from_rows]
    assert [c.user for c in choices] == [
        f"studio-dev-{user}" for user in range(5) for _ in range(4)
    ]
    picture = {c.preferred_id: c.preferred for c in choices}
    picture |= {c.rejected_id: c.rejected for c in choices}
    assert picture == {
        f"studio-dev-{index}": png(pool.images[index])
        for index in np.union1d(preferred, rejected).tolist()
    }
