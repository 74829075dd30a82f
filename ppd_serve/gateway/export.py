"""Everything held about a user, as one ZIP archive that is written while it is sent.

Of it all, one page of records or one picture is held at a time, and the pictures' names. What lives
is read, page by page: what is deleted meanwhile stops coming, and an archive whose user was deleted
never gets its end, without which nobody can open it. Stored idempotent answers are left out: they
repeat, for a day, what is told here.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from ppd_serve.errors import NotFound
from ppd_serve.gateway.blends import masked
from ppd_serve.gateway.running import Threads
from ppd_serve.storage.store import (
    Embedding,
    Feedback,
    Generation,
    Question,
    Store,
    StoredPair,
    TasteCode,
    User,
)
from ppd_serve.storage.values import BEGINNING, Place

PAGE = 200  # records
EMBEDDINGS_PAGE = 20  # these have thousands of numbers each

Told = Mapping[str, Any]  # a record as the archive has it
Record = TypeVar("Record", Question, Feedback, Generation)


class ExportService:
    def __init__(self, store: Store, db: Threads) -> None:
        self._store, self._db = store, db

    async def archive(self, project: str, user_id: str) -> AsyncIterator[bytes]:
        user = await self._db(self._store.get_user, project, user_id)
        pieces = archive(self._store, user)

        async def sent() -> AsyncIterator[bytes]:
            while (piece := await self._db(lambda: next(pieces, None))) is not None:
                yield piece

        return sent()


def archive(store: Store, user: User) -> Iterator[bytes]:
    """The ZIP file in pieces. Raises ``NotFound`` once the user is deleted."""
    outbox, pictures = _Outbox(), dict[str, None]()  # of these, in the order of their first mention
    with ZipFile(outbox, "w", ZIP_DEFLATED) as files:
        about = {"user_id": user.user_id, "created": user.created, "pairs_total": user.pairs_total}
        files.writestr(_member("user.json"), _line(about), ZIP_DEFLATED)
        for name, pages in _records(store, user).items():
            with files.open(_member(f"{name}.jsonl", ZIP_DEFLATED), "w", force_zip64=True) as file:
                for page in pages:
                    for told in page:
                        file.write(_line(told))
                        pictures |= dict.fromkeys(_pictures(told))
                    yield outbox.take()
        for image_id in pictures:
            try:
                image, data = store.read_image(user.project, image_id)
            except NotFound:  # nothing has used it for its time
                continue
            kind = image.media_type.removeprefix("image/")
            files.writestr(_member(f"images/{image_id}.{kind}"), data)
            yield outbox.take()
        if store.get_user(user.project, user.user_id).incarnation != user.incarnation:
            raise NotFound("This user was deleted")
    yield outbox.take()


def _records(store: Store, user: User) -> dict[str, Iterator[Sequence[Told]]]:
    """The pages of each kind, by its name in the archive."""
    who = user.project, user.user_id

    def paged(
        read: Callable[[str, str, Place, int], list[Record]], told: Callable[[Record], Told]
    ) -> Iterator[Sequence[Told]]:
        after = BEGINNING
        while page := read(*who, after, PAGE):
            yield [told(record) for record in page]
            after = page[-1].place

    return {
        "pairs": _pairs(store, *who),
        "questions": paged(store.list_questions, _question),
        "feedback": paged(store.list_feedback, _feedback),
        "embeddings": _embeddings(store, *who),
        "taste_codes": iter([[_taste_code(code) for code in store.list_taste_codes(*who)]]),
        "generations": paged(store.list_generations, lambda one: _generation(one, user.user_id)),
    }


def _pairs(store: Store, project: str, user_id: str) -> Iterator[Sequence[Told]]:
    cursor = None
    while True:
        page = store.list_pairs(project, user_id, cursor, PAGE)
        yield [_pair(pair) for pair in page.pairs]
        cursor = page.next
        if cursor is None:
            return


def _embeddings(store: Store, project: str, user_id: str) -> Iterator[Sequence[Told]]:
    for space in store.embedding_spaces(project, user_id):
        before = None
        while page := store.embedding_versions(project, user_id, space, before, EMBEDDINGS_PAGE):
            before = page[-1].version
            found = (store.get_embedding(project, user_id, space, one.version) for one in page)
            yield [_embedding(embedding) for embedding in found if embedding is not None]


def _pair(pair: StoredPair) -> Told:
    return {
        "pair_id": pair.pair_id,
        "prompt": pair.prompt,
        "preferred": {"image_id": pair.preferred_image_id},
        "rejected": {"image_id": pair.rejected_image_id},
        "created": pair.created,
    }


def _question(question: Question) -> Told:
    return {
        "question_id": question.question_id,
        "prompt": question.prompt,
        "left": {"image_id": question.left_image_id},
        "right": {"image_id": question.right_image_id},
        "choice": question.choice,
        "bits": question.bits,
        "created": question.created,
    }


def _feedback(feedback: Feedback) -> Told:
    return {
        "feedback_id": feedback.feedback_id,
        "image_id": feedback.image_id,
        "prompt": feedback.prompt,
        "liked": feedback.liked,
        "created": feedback.created,
    }


def _embedding(embedding: Embedding) -> Told:
    return {
        "space": embedding.space,
        "version": embedding.version,
        "pairs_used": embedding.pairs_used,
        "profile": embedding.profile,
        "bits": embedding.bits,
        "values": embedding.values.tolist(),
    }


def _taste_code(code: TasteCode) -> Told:
    """An archive goes from hand to hand, so it draws with nothing."""
    return {"code": masked(code.code), "version": code.version, "created": code.created}


def _generation(one: Generation, user_id: str) -> Told:
    """Who else was in the blend is theirs to tell."""
    request, answer = dict(one.request), one.answer or {}
    if "users" in request:
        request["users"] = _own(request["users"], user_id)
    return {
        "id": one.generation_id,
        "status": one.state,
        "release": answer.get("release"),
        "request": request,
        "users": _own(answer.get("users", []), user_id),
        "images": [{"image_id": image_id} for image_id in one.image_ids],
        "timing": answer.get("timing", {}),
        "error": one.error,
        "created": one.created,
        "updated": one.updated,
    }


def _own(users: Sequence[Told], user_id: str) -> list[Told]:
    return [user for user in users if user.get("user_id") == user_id]


def _pictures(told: Told) -> Iterator[str]:
    """The pictures that a record names."""
    for name, value in told.items():
        if name == "image_id":
            yield value
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Mapping):
                yield from _pictures(part)


def _line(told: Told) -> bytes:
    return json.dumps(told, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _member(name: str, compression: int = 0) -> ZipInfo:
    """Without the time of its writing: the same data make the same archive."""
    member = ZipInfo(name)
    member.compress_type = compression
    return member


class _Outbox(io.RawIOBase):
    """Where a ZIP file is written, piece by piece, by whoever takes the pieces away."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken
