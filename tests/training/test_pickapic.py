"""Pick-a-Pic-shaped files through the real ``datasets`` loader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from tests.training.shards import picture, row, write_shard
from tests.training.studio import small_pool
from training.data.choices import Choice, NoRows, Skipped, choice_of
from training.data.pickapic import PickAPic
from training.data.pool import PairSampler
from training.data.readings import MOST_READ, split_of
from training.data.rows import read_rows, studio_rows, write_rows
from training.data.users import people


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` remembers of a file of this test is no business of another."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(source: Any, **options: Any) -> tuple[list[Choice], Skipped]:
    skipped = Skipped()
    source = source if isinstance(source, PickAPic) else PickAPic(source)
    choices = list(source.choices(skipped, **options))
    assert skipped.kept == len(choices)
    return choices, skipped


def test_a_file_of_the_studio_comes_back_as_choices(tmp_path: Path) -> None:
    pool = small_pool(24)
    preferred, rejected = PairSampler(pool).draw(people("dev", 5), 4, np.random.default_rng(0))
    path = tmp_path / "rows.parquet"
    write_rows(path, studio_rows(pool, preferred, rejected))
    choices, skipped = read(path)
    assert choices == [choice_of(r) for r in read_rows(path)] and len(choices) == 20
    assert not skipped.reasons and skipped.users == 0


def test_broken_rows_are_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        row(10, label_0=0.5, label_1=0.5),
        row(11, jpg_0=b"not a picture"),
        row(12, jpg_1=picture(3)[:-200]),
        row(13, label_0=None),
        row(14, has_label=False),
        row(15, user=None),
        row(16, caption=None),
        row(17, jpg_1=None),
        row(18, are_different=False),
    ]
    good = [row(number) for number in range(6)]
    path = write_shard(tmp_path / "rows.parquet", [*bad[:4], *good, *bad[4:]])
    choices, skipped = read(path)
    assert choices == [choice_of(r) for r in good]
    assert skipped.reasons == {
        "tie": 1, "broken picture": 2, "no label": 2, "no user": 1, "no prompt": 1,
        "no picture": 1, "same picture": 1,
    }  # fmt: skip
    assert skipped.report().startswith("6 choices kept, 9 skipped (")


def test_a_column_of_another_type_is_read_row_by_row(tmp_path: Path) -> None:
    """Its neighbour shard has numbers, and one label is no number: only that row is lost."""
    first = write_shard(tmp_path / "0.parquet", [row(n) for n in range(4)])
    words = [row(4, label_0="1", label_1="0"), row(5, label_0="good", label_1="bad")]
    second = write_shard(
        tmp_path / "1.parquet", [r | {"user_id": "7", "has_label": "True"} for r in words]
    )
    choices, skipped = read([first, second])
    assert [c.prompt for c in choices] == [f"a cat, {n}" for n in range(5)]
    assert {c.user for c in choices} == {"7"}
    assert skipped.reasons == {"broken label": 1}


def test_a_caption_that_is_no_text_costs_one_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(n) for n in range(4)])
    raw = pa.array([b"a cat", b"\xff\xfe", b"a dog", b"a bird"]).view(pa.string())
    table = table.set_column(table.column_names.index("caption"), "caption", raw)
    pq.write_table(table, tmp_path / "rows.parquet")
    choices, skipped = read(tmp_path / "rows.parquet", least_pairs=1)
    assert [c.prompt for c in choices] == ["a cat", "a dog", "a bird"]
    assert skipped.reasons == {"no prompt": 1}


def test_a_torn_file_among_others_is_counted(tmp_path: Path) -> None:
    good = [write_shard(tmp_path / f"{n}.parquet", [row(n)]) for n in (1, 3)]
    torn = write_shard(tmp_path / "0.parquet", [row(0)])
    torn.write_bytes(torn.read_bytes()[:-50])
    rotten = write_shard(tmp_path / "2.parquet", [row(2)])
    data = bytearray(rotten.read_bytes())
    data[4:400] = bytes(396)  # the footer is whole, the pages are not
    rotten.write_bytes(data)
    choices, skipped = read([torn, good[0], rotten, good[1]], least_pairs=1)
    assert [c.prompt for c in choices] == ["a cat, 1", "a cat, 3"]
    assert skipped.reasons == {"unreadable file": 2}


@pytest.mark.parametrize("column", ["user_id", "caption", "jpg_0", "jpg_1", "label_0"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    rows = [{k: v for k, v in row(n).items() if k != column} for n in range(4)]
    path = write_shard(tmp_path / "rows.parquet", rows)
    with pytest.raises(NoRows, match=f"no column {column}$"):
        read(path)


def test_the_other_columns_may_be_missing(tmp_path: Path) -> None:
    least = ("user_id", "caption", "jpg_0", "jpg_1", "label_0")
    rows = [{k: v for k, v in row(n).items() if k in least} for n in range(4)]
    choices, _ = read(write_shard(tmp_path / "rows.parquet", rows))
    assert choices == [choice_of(r) for r in rows]


def test_pictures_of_the_datasets_library_stay_bytes(tmp_path: Path) -> None:
    rows = [{k: row(n)[k] for k in ("user_id", "caption", "jpg_0", "jpg_1", "label_0")}
            for n in range(4)]  # fmt: skip
    features = Features(
        user_id=Value("int64"), caption=Value("string"), jpg_0=Image(), jpg_1=Image(),
        label_0=Value("float64"),
    )  # fmt: skip
    encoded = [r | {k: {"bytes": r[k], "path": None} for k in ("jpg_0", "jpg_1")} for r in rows]
    encoded[2]["jpg_1"] = {"bytes": b"broken", "path": None}  # decoding it would be an error
    Dataset.from_list(encoded, features=features).to_parquet(tmp_path / "rows.parquet")
    choices, skipped = read(tmp_path / "rows.parquet")
    assert [c.preferred for c in choices] == [rows[n]["jpg_0"] for n in (0, 1, 3)]
    assert skipped.reasons == {"broken picture": 1}


def test_a_directory_is_read_as_a_repository_of_the_hub(tmp_path: Path) -> None:
    """The very call that fetches from the hub, with its README and its splits by file name."""
    data = tmp_path / "repository" / "data"
    write_shard(data / "train-00000-of-00002.parquet", [row(n) for n in range(4)])
    write_shard(data / "train-00001-of-00002.parquet", [row(n) for n in range(4, 8)])
    write_shard(data / "validation_unique-00000-of-00001.parquet", [row(n) for n in range(8, 12)])
    (data.parent / "README.md").write_text("# Pictures\n")
    choices, _ = read(data.parent)
    assert [c.prompt for c in choices] == [f"a cat, {n}" for n in range(8)]
    choices, _ = read(PickAPic(data.parent, split="validation_unique"))
    assert [c.prompt for c in choices] == [f"a cat, {n}" for n in range(8, 12)]
    with pytest.raises(ValueError, match="nowhere"):
        read(PickAPic(data.parent, split="nowhere"))


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"user_id": "1"}\n')
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing.parquet"
    for source in (missing, [missing], "nobody/missing", lines, tmp_path / "empty"):
        place = source[0] if isinstance(source, list) else source
        with pytest.raises(NoRows, match=f"{place}.*cannot be read as Parquet files"):
            read(source)


def test_people_with_few_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    mixed = [row(n, user=n % 3) for n in range(9)] + [row(9, user=0)]
    mixed += [row(n, user=1, label_0=0.5, label_1=0.5) for n in (10, 11)]  # ties are no pairs
    path = write_shard(tmp_path / "rows.parquet", mixed)
    choices, skipped = read(path)
    assert Counter(c.user for c in choices) == {"0": 4}
    assert skipped.users == 2 and skipped.reasons == {"user of few pairs": 8}
    choices, skipped = read(path, least_pairs=1)
    assert Counter(c.user for c in choices) == {"0": 4, "1": 3, "2": 3}
    assert skipped.users == 0 and skipped.reasons == {"tie": 2}


def test_at_most_so_many_pairs_of_one_person(tmp_path: Path) -> None:
    rows = [row(n, user=n % 2) for n in range(50)]
    rows[0] = row(0, user=0, jpg_0=b"broken")  # takes no place
    choices, skipped = read(write_shard(tmp_path / "rows.parquet", rows), most_pairs=MOST_READ)
    assert Counter(c.user for c in choices) == {"0": 20, "1": 20}
    assert next(c.prompt for c in choices if c.user == "0") == "a cat, 2"
    assert skipped.reasons == {"more pairs of one user": 9, "broken picture": 1}


def test_splits_share_nobody_and_miss_nobody(tmp_path: Path) -> None:
    rows = [row(n, user=n % 25) for n in range(100)] + [row(n, user=n) for n in range(100, 140)]
    path = write_shard(tmp_path / "rows.parquet", rows)
    everyone, skipped = read(path)
    read_apart = {split: read(path, users=split) for split in ("train", "dev", "test")}
    assert sum(part.users for _, part in read_apart.values()) == skipped.users == 40
    parts = {split: choices for split, (choices, _) in read_apart.items()}
    assert all(parts.values())
    assert all(split_of(c.user) == split for split, part in parts.items() for c in part)
    assert sorted(c.prompt for part in parts.values() for c in part) == sorted(
        c.prompt for c in everyone
    )


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Arrow, which holds the encoded pictures, never has more than half of 200 MB.

    What it reads ahead is up to it: 25 to 71 MB were seen, of files of 100 to 800 MB."""
    rng = np.random.default_rng(0)
    path = tmp_path / "rows.parquet"
    write_rows(
        path,
        (
            row(n) if n % 20 == 0 else row(n, jpg_0=rng.bytes(25_000), jpg_1=rng.bytes(25_000))
            for n in range(4000)
        ),  # type: ignore[arg-type]
    )
    assert path.stat().st_size > 180_000_000
    skipped, before, peak = Skipped(), pa.total_allocated_bytes(), 0
    for _ in PickAPic(path).choices(skipped, least_pairs=1):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert skipped.kept == 200 and skipped.reasons == {"broken picture": 3800}
    assert peak < 100_000_000
