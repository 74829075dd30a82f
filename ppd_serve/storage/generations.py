"""Records of drawn pictures: what was asked, by whom, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from ppd_serve.errors import Interrupted, NotFound
from ppd_serve.storage.base import StoreBase, new_id
from ppd_serve.storage.database import batches
from ppd_serve.storage.loop_records import GenerationCodeRecord, TasteCodeRecord
from ppd_serve.storage.records import (
    GenerationRecord,
    GenerationUserRecord,
    ImageRecord,
    UserRecord,
)
from ppd_serve.storage.users import unknown_user
from ppd_serve.storage.values import UNFINISHED, Generation, GenerationState, Place
from ppd_serve.storage.versions import WITHDRAWN


class GenerationStore(StoreBase):
    def create_generation(
        self,
        project: str,
        request: Mapping[str, Any],
        users: Mapping[str, str] | None = None,
        answer: Mapping[str, Any] | None = None,
        codes: Sequence[str] = (),
        state: GenerationState = "queued",
    ) -> Generation:
        """A new record under a random id. ``users`` maps user id → incarnation; raises
        ``NotFound`` when one of these incarnations, or of these taste ``codes``, is gone.
        ``request`` and ``answer`` are JSON."""
        users = users or {}
        now = self._clock()
        with self._database.write() as session:
            alive = session.execute(
                select(UserRecord.user_id, UserRecord.incarnation)
                .where(UserRecord.project == project, UserRecord.user_id.in_(users))
                .order_by(UserRecord.user_id)
                .with_for_update(read=True)  # a deletion waits, and then finds this record
            )
            if dict(users) != {user_id: incarnation for user_id, incarnation in alive}:
                raise unknown_user()
            living = session.scalars(
                select(TasteCodeRecord.code)
                .where(TasteCodeRecord.project == project, TasteCodeRecord.code.in_(set(codes)))
                .order_by(TasteCodeRecord.code)
                .with_for_update(read=True)
            ).all()
            if set(living) != set(codes):
                raise NotFound(WITHDRAWN, field="taste_code")
            record = GenerationRecord(
                generation_id=new_id("gen"),
                project=project,
                state=state,
                owner=self._owners.me,
                request=dict(request),
                error=None,
                answer=None if answer is None else dict(answer),
                created=now,
                updated=now,
            )
            session.add(record)
            session.flush()
            session.add_all(
                GenerationUserRecord(
                    generation_id=record.generation_id, project=project, user_id=user_id
                )
                for user_id in users
            )
            session.add_all(
                GenerationCodeRecord(generation_id=record.generation_id, code=code)
                for code in living
            )
            return _generation_value(record, sorted(users), {})

    def set_generation(
        self,
        project: str,
        generation_id: str,
        state: GenerationState,
        error: Mapping[str, Any] | None = None,
        answer: Mapping[str, Any] | None = None,
    ) -> bool:
        """Move an unfinished record on, with a new ``answer`` if there is one. False when it is
        gone or has already ended."""
        told = {} if answer is None else {"answer": dict(answer)}
        with self._database.write() as session:
            moved = session.scalars(
                update(GenerationRecord)
                .where(
                    GenerationRecord.generation_id == generation_id,
                    GenerationRecord.project == project,
                    GenerationRecord.state.in_(UNFINISHED),
                )
                .values(
                    state=state,
                    error=None if error is None else dict(error),
                    updated=self._clock(),
                    **told,
                )
                .returning(GenerationRecord.generation_id)
            ).all()
            if state not in UNFINISHED:
                _forget_codes(session, moved)
            return bool(moved)

    def get_generation(self, project: str, generation_id: str) -> Generation:
        """Raises ``NotFound``."""
        with self._database.read() as session:
            record = session.get(GenerationRecord, generation_id)
            if record is None or record.project != project:
                raise NotFound("There is no such generation", field="generation_id")
            users = session.scalars(
                select(GenerationUserRecord.user_id)
                .filter_by(generation_id=generation_id)
                .order_by(GenerationUserRecord.user_id)
            )
            images = session.execute(
                select(ImageRecord.position, ImageRecord.image_id)
                .filter_by(generation_id=generation_id)
                .order_by(ImageRecord.position)
            )
            return _generation_value(
                record, list(users), {position: image_id for position, image_id in images}
            )

    def list_generations(
        self, project: str, user_id: str, after: Place, limit: int
    ) -> list[Generation]:
        """Those that were asked for with the user, oldest first, that follow ``after``; none for
        nobody."""
        with self._database.read() as session:
            place = tuple_(GenerationRecord.created, GenerationRecord.generation_id)
            records = session.scalars(
                select(GenerationRecord)
                .join(GenerationUserRecord)
                .where(
                    GenerationUserRecord.project == project,
                    GenerationUserRecord.user_id == user_id,
                    place > after,
                )
                .order_by(GenerationRecord.created, GenerationRecord.generation_id)
                .limit(limit)
            ).all()
            users: dict[str, list[str]] = {record.generation_id: [] for record in records}
            images: dict[str | None, dict[int, str]] = {r.generation_id: {} for r in records}
            for generation_id, user in session.execute(
                select(GenerationUserRecord.generation_id, GenerationUserRecord.user_id)
                .where(GenerationUserRecord.generation_id.in_(users))
                .order_by(GenerationUserRecord.user_id)
            ):
                users[generation_id].append(user)
            for drawn, position, image_id in session.execute(
                select(ImageRecord.generation_id, ImageRecord.position, ImageRecord.image_id)
                .where(ImageRecord.generation_id.in_(images))
                .order_by(ImageRecord.position)
            ):
                images[drawn][position] = image_id
            return [
                _generation_value(record, users[record.generation_id], images[record.generation_id])
                for record in records
            ]

    def _interrupt_of(self, session: Session, owners: Iterable[str]) -> int:
        """Fail what dead processes were drawing."""
        error = {"type": Interrupted.type, "detail": Interrupted.title}
        interrupted = session.scalars(
            update(GenerationRecord)
            .where(
                GenerationRecord.owner.in_(list(owners)),
                GenerationRecord.state.in_(UNFINISHED),
            )
            .values(state="failed", error=error, updated=self._clock())
            .returning(GenerationRecord.generation_id)
        ).all()
        _forget_codes(session, interrupted)
        return len(interrupted)


def _forget_codes(session: Session, generation_ids: Sequence[str]) -> None:
    for batch in batches(generation_ids):
        session.execute(
            delete(GenerationCodeRecord).where(GenerationCodeRecord.generation_id.in_(batch))
        )


def _generation_value(
    record: GenerationRecord, user_ids: list[str], images: dict[int, str]
) -> Generation:
    return Generation(
        generation_id=record.generation_id,
        project=record.project,
        state=record.state,  # type: ignore[arg-type]
        user_ids=user_ids,
        images=images,
        request=record.request,
        error=record.error,
        answer=record.answer,
        created=record.created,
        updated=record.updated,
    )
