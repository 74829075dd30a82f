"""The index actor over its lives: whatever its file is, it ends equal to the database. And the
encoder's, which says when it hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppd_serve import logs
from ppd_serve.actors import Encoder, UserIndex
from ppd_serve.actors import encoder as encoder_actor
from ppd_serve.errors import ReleaseError, Unavailable, Unsupported
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.ports import IndexRow
from ppd_serve.gateway.running import Threads
from ppd_serve.preferences.index import UserIndex as Index
from ppd_serve.preferences.pairs import Pair
from ppd_serve.preferences.questions import Questioner
from ppd_serve.settings import EncoderPart
from ppd_serve.storage.store import NewImage, NewPair, Store
from ppd_serve.storage.values import index_id
from tests.api.doubles import png
from tests.tiny_release import make_tiny_release, tiny_questioner

SPACE, SHAPE, P = "space", (1, 4), "default"
PAIR = NewPair("a", NewImage(png(), "image/png", 8, 8), NewImage(png(), "image/png", 8, 8))


def teach(store: Store, user_id: str, value: float) -> str:
    """A new pair and an embedding for it; the user's index id."""
    added = store.add_pairs(P, user_id, [PAIR])
    values = np.full(SHAPE, value, np.float32)
    assert store.put_embedding(
        P, user_id, added.incarnation, added.version, SPACE, values, added.pairs_total, None
    )
    return index_id(P, added.incarnation)


def actor(directory: Path) -> UserIndex:
    return UserIndex(str(directory), SPACE, SHAPE, save_seconds=0.01)


async def fed(store: Store, index: UserIndex) -> UserIndex:
    threads = Threads(1, "test")
    await Feed(store, threads, index, SPACE).sync()
    threads.close()
    return index


async def saved(directory: Path) -> None:
    async with asyncio.timeout(20):
        while not (directory / "users.index").exists():
            await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/ppd.db", str(tmp_path / "blobs"))


@pytest.mark.parametrize("file", ["kept", "missing", "torn", "garbage", "stale", "other space"])
async def test_a_restart_ends_equal_to_the_database(
    store: Store, tmp_path: Path, file: str
) -> None:
    directory = tmp_path / "index"
    ann, bob = teach(store, "ann", 1), teach(store, "bob", 2)
    await fed(store, actor(directory))
    await saved(directory)
    path = directory / "users.index"
    early = path.read_bytes()
    teach(store, "ann", 3)
    store.delete_user(P, "bob")
    eve = teach(store, "eve", 4)
    if file == "missing":
        path.unlink()
    elif file == "torn":
        path.write_bytes(early[:-5])
    elif file == "garbage":
        path.write_bytes(b"garbage")
    elif file == "stale":
        path.write_bytes(early)
    elif file == "other space":
        other = Index("another", *SHAPE)
        other.put(ann, 9, np.full(SHAPE, 9, np.float32))
        other.save(directory)
    index = await fed(store, actor(directory))
    version, values = await index.get(ann) or (0, np.zeros(SHAPE))
    assert (version, values[0, 0]) == (2, 3)
    assert await index.get(bob) is None
    assert await index.get(eve) is not None
    found = await index.search(np.ones(4, np.float32), 10, index_id(P, ""))
    assert {name for name, _ in found} == {ann, eve}


async def test_who_is_deleted_leaves_the_file_at_once(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "index"
    ann = teach(store, "ann", 1)
    index = await fed(store, actor(directory))
    await saved(directory)
    store.delete_user(P, "ann")
    await fed(store, index)
    assert await actor(directory).get(ann) is None  # loaded from the file alone


@pytest.mark.parametrize(
    ("source", "sequence"), [("ours", 10_000), ("another", 10_000), ("another", 1), ("", 1)]
)
async def test_a_file_of_another_database_is_not_believed(
    store: Store, tmp_path: Path, source: str, sequence: int
) -> None:
    """Nor one ahead of ours, which was then restored to an earlier state."""
    directory = tmp_path / "index"
    foreign = Index(SPACE, *SHAPE)
    foreign.put("default/ghost", 1, np.ones(SHAPE, np.float32))
    foreign.source = store.database_id() if source == "ours" else source
    foreign.sequence = sequence
    foreign.save(directory)
    ann = teach(store, "ann", 1)
    index = await fed(store, actor(directory))
    assert await index.get("default/ghost") is None
    assert await index.get(ann) is not None


async def test_a_row_that_the_index_refuses_keeps_nobody_else_out(tmp_path: Path) -> None:
    good = np.ones(SHAPE, np.float32)
    index = actor(tmp_path / "index")
    rows = [
        IndexRow(1, "default/a", 1, good),
        IndexRow(2, "default/b", 1, good * np.nan),
        IndexRow(3, "default/c", 1, np.ones((2, 2), np.float32)),
        IndexRow(4, "default/d", 1, good),
    ]
    assert await index.apply("", 0, rows) == 4
    assert (await index.beat()).figures == {"users": 2}
    assert [await index.get(row.id) is not None for row in rows] == [True, False, False, True]


async def test_the_index_is_saved_once_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, tried = tmp_path / "index", threading.Event()

    def full(self: Index, directory: Path) -> None:
        tried.set()
        raise OSError("no space left on device")

    monkeypatch.setattr(Index, "save", full)
    row = IndexRow(1, "default/a", 1, np.ones(SHAPE, np.float32))
    await actor(directory).apply("", 0, [row])
    assert await asyncio.to_thread(tried.wait, 20)
    monkeypatch.undo()
    await saved(directory)


class Reader:
    """Reads chunks of four and hangs when told to."""

    space = SPACE

    def __init__(self) -> None:
        self.go_on, self.hangs = threading.Event(), threading.Event()
        self.go_on.set()
        self.read: list[int] = []
        self.chunks_read = 0
        self.error: Exception | None = None

    def embed(self, pairs: Sequence[Pair]) -> SimpleNamespace:
        if not self.go_on.is_set():
            self.hangs.set()
            self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        self.read.append(len(pairs))
        self.chunks_read += len(pairs) <= 4  # what was read before is remembered
        return SimpleNamespace(embedding=np.full(SHAPE, len(pairs), np.float32), profile="warm")


def encoder(
    monkeypatch: pytest.MonkeyPatch,
    reader: Reader,
    shape: tuple[int, int],
    questioner: Questioner | None = None,
) -> Encoder:
    release = SimpleNamespace(
        load_encoder=lambda **how: reader,
        embedding_space=SPACE,
        manifest=SimpleNamespace(embedding_shape=shape),
        defaults=SimpleNamespace(sizes=[(8, 8)]),
        load_questioner=lambda: questioner,
    )
    monkeypatch.setattr("ppd_serve.release.load_release", lambda path: release)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    return Encoder("release", EncoderPart())


async def test_an_encoder_whose_gpu_is_lost_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading would fail from now on; of any other error the next one knows nothing."""
    reader = Reader()
    part = encoder(monkeypatch, reader, SHAPE)
    pairs = [Pair("a", b"", b"")]

    def fails(error: Exception) -> None:
        def embed(_: list[Pair]) -> None:
            raise error

        monkeypatch.setattr(reader, "embed", embed)

    fails(RuntimeError("CUDA out of memory"))
    with pytest.raises(RuntimeError):
        await part.embed(pairs)
    part.check_health()
    fails(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        await part.embed(pairs)
    with pytest.raises(Unavailable, match="lost"):
        part.check_health()


async def test_an_encoder_that_hangs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    part = encoder(monkeypatch, reader, SHAPE)
    monkeypatch.setattr(encoder_actor, "STUCK_SECONDS", -1.0)  # whatever is under way has hung
    await part.beat()
    reader.go_on.clear()
    reading = asyncio.create_task(part.embed([Pair("a", b"", b"")] * 9))
    assert await asyncio.to_thread(reader.hangs.wait, 20)
    with pytest.raises(Unavailable):
        await part.beat()
    with pytest.raises(Unavailable):
        part.check_health()
    monkeypatch.undo()
    await part.beat()  # it may take its time
    reader.go_on.set()
    read = await reading
    assert (read.values[0, 0], read.profile, read.bits) == (9, "warm", None)
    await part.beat()
    assert reader.read == [4, 4, 4, 1, 9]  # the warm-up, the chunks, then all that is remembered
    beat = await part.beat()
    assert beat.figures == {"chunk_hits": 0, "chunk_misses": 3}


async def test_a_reading_that_fails_says_for_whom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()
    part = encoder(monkeypatch, reader, SHAPE)
    reader.error = RuntimeError("broken")
    caplog.handler.addFilter(logs.with_request_id)  # in the reading's own thread
    with pytest.raises(RuntimeError):
        await part.embed([Pair("a", b"", b"")], "mine")
    (line,) = caplog.records
    assert (line.request_id, line.levelname) == ("mine", "ERROR")  # type: ignore[attr-defined]
    await part.beat()  # it does not hang


async def test_a_reading_is_good_without_what_a_question_would_tell(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()  # which can't look at pictures
    part = encoder(monkeypatch, reader, SHAPE, tiny_questioner())
    read = await part.embed([Pair("a", b"", b"")])
    assert (read.values[0, 0], read.profile, read.bits) == (1, "warm", None)
    assert [line.levelname for line in caplog.records] == ["ERROR"]
    with pytest.raises(AttributeError):
        await part.ask([Pair("a", b"", b"")], 0)
    assert (await part.ask([], 0)).bits > 0


async def test_an_encoder_of_another_shape_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReleaseError, match="embeddings"):
        encoder(monkeypatch, Reader(), (2, 4))


def test_an_encoder_in_another_precision_does_not_start(tmp_path: Path) -> None:
    """Than the release was built for: its embeddings are of another space."""
    release = make_tiny_release(tmp_path)
    with pytest.raises(ReleaseError, match=f"the release's {release.embedding_space}"):
        Encoder(str(release.path), EncoderPart(threads=1, dtype="bfloat16"))


async def test_the_encoder_asks_what_it_knows_least(tmp_path: Path) -> None:
    release = make_tiny_release(tmp_path)
    part = Encoder(str(release.path), EncoderPart(threads=1))
    first = await part.ask([], 0)
    assert first.left.shape == first.right.shape == release.manifest.embedding_shape
    pairs = [
        Pair("a house", png(colour=c), png(colour=d)) for c, d in (("red", "blue"), ("tan", "navy"))
    ]
    second = await part.ask(pairs, 0)
    assert not np.allclose(first.left, second.left)
    assert second.bits < first.bits
    assert (await part.embed(pairs)).bits == second.bits  # what `ask_more` goes by
    again = await part.ask(pairs, 0)
    np.testing.assert_array_equal(again.left, second.left)
    third = await part.ask(pairs, 1)  # the second taught nothing
    assert not np.allclose(third.left, second.left) and third.bits <= second.bits


async def test_an_encoder_without_questions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="asks no questions"):
        await encoder(monkeypatch, Reader(), SHAPE).ask([], 0)
