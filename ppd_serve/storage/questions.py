"""Questions: two pictures of one prompt, and which of them a user preferred."""

from __future__ import annotations

from typing import assert_never

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from ppd_serve.errors import Conflict, Gone, NotFound
from ppd_serve.storage.base import new_id
from ppd_serve.storage.blobs import digest_of
from ppd_serve.storage.database import storage_errors
from ppd_serve.storage.images import insert_image
from ppd_serve.storage.loop_records import QuestionRecord
from ppd_serve.storage.pairs import PairStore
from ppd_serve.storage.records import PairRecord, UserRecord
from ppd_serve.storage.users import locked_user, unknown_user
from ppd_serve.storage.values import AddedPairs, Choice, NewImage, NewPair, Place, Question


class QuestionStore(PairStore):
    def add_question(
        self,
        project: str,
        user_id: str,
        incarnation: str,
        version: int,
        prompt: str,
        left: NewImage,
        right: NewImage,
        bits: float,
    ) -> Question:
        """Keep both pictures and the question, or nothing. The pictures expire like drawn ones.
        ``version``: of the pairs that it was made of. Raises ``NotFound`` when this incarnation of
        the user is gone, ``Conflict`` when a pair was deleted since: ask again."""
        with storage_errors():
            for side in (left, right):
                self._blobs.put(side.data)
        now = self._clock()
        with self._database.write() as session:
            user = locked_user(session, project, user_id)
            if user.incarnation != incarnation:
                raise unknown_user()
            if version < user.least_version:
                raise Conflict("A pair was deleted while this question was being made: ask again")
            # In digest order, as everywhere, so that two writers never wait in a ring.
            sides = sorted(
                {"left": left, "right": right}.items(), key=lambda s: digest_of(s[1].data)
            )
            kept = {
                side: insert_image(session, self._blobs, project, image, "generated", now)
                for side, image in sides
            }
            record = QuestionRecord(
                question_id=new_id("question"),
                project=project,
                user_id=user_id,
                prompt=prompt,
                left_image_id=kept["left"].image_id,
                right_image_id=kept["right"].image_id,
                bits=bits,
                choice=None,
                pair_id=None,
                created=now,
            )
            session.add(record)
            return _question_value(record)

    def get_question(self, project: str, user_id: str, question_id: str) -> Question:
        """Raises ``NotFound``."""
        with self._database.read() as session:
            return _question_value(_question(session, project, user_id, question_id))

    def list_questions(
        self, project: str, user_id: str, after: Place, limit: int
    ) -> list[Question]:
        """The user's, oldest first, that follow ``after``; none for nobody."""
        with self._database.read() as session:
            place = tuple_(QuestionRecord.created, QuestionRecord.question_id)
            records = session.scalars(
                select(QuestionRecord)
                .filter_by(project=project, user_id=user_id)
                .where(place > after)
                .order_by(QuestionRecord.created, QuestionRecord.question_id)
                .limit(limit)
            )
            return [_question_value(record) for record in records]

    def questions_total(self, project: str, user_id: str) -> int:
        """How many this user has been asked."""
        with self._database.read() as session:
            return session.scalars(
                select(func.count())
                .select_from(QuestionRecord)
                .filter_by(project=project, user_id=user_id)
            ).one()

    def questions_since_pair(self, project: str, user_id: str) -> int:
        """How many this user has been asked since the newest pair came."""
        with self._database.read() as session:
            newest = (
                select(func.coalesce(func.max(PairRecord.created), 0.0))
                .filter_by(project=project, user_id=user_id)
                .scalar_subquery()
            )
            return session.scalars(
                select(func.count())
                .select_from(QuestionRecord)
                .filter_by(project=project, user_id=user_id)
                .where(QuestionRecord.created > newest)
            ).one()

    def answer_question(
        self, project: str, user_id: str, question_id: str, choice: Choice
    ) -> AddedPairs:
        """Commit the answer and the pair that it makes (``neither``: none). ``replayed`` when it
        had been answered so before. Raises ``NotFound``, ``Conflict`` when it was answered
        otherwise, ``Gone`` when a picture of it has expired."""
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                raise _unknown() from None
            record = _question(session, project, user_id, question_id)
            if record.choice is not None:
                if record.choice != choice:
                    raise Conflict("This question was answered otherwise", field="choice")
                return _as_it_stands(user, record, replayed=True)
            pair = _pair(record, choice)
            record.choice = choice
            if pair is None:
                return _as_it_stands(user, record, replayed=False)
            try:
                added = self._add(session, project, user_id, [pair])
            except NotFound:
                raise Gone("The pictures of this question have expired") from None
            session.flush()  # the pair first: the question refers to it
            (record.pair_id,) = added.pair_ids
            return added


def _question(session: Session, project: str, user_id: str, question_id: str) -> QuestionRecord:
    record = session.get(QuestionRecord, question_id)
    if record is None or (record.project, record.user_id) != (project, user_id):
        raise _unknown()
    return record


def _unknown() -> NotFound:
    return NotFound("There is no such question", field="question_id")


def _pair(record: QuestionRecord, choice: Choice) -> NewPair | None:
    match choice:
        case "left":
            return NewPair(record.prompt, record.left_image_id, record.right_image_id)
        case "right":
            return NewPair(record.prompt, record.right_image_id, record.left_image_id)
        case "neither":
            return None
    assert_never(choice)


def _as_it_stands(user: UserRecord, record: QuestionRecord, *, replayed: bool) -> AddedPairs:
    return AddedPairs(
        user.user_id,
        user.incarnation,
        user.version,
        user.pairs_total,
        [] if record.pair_id is None else [record.pair_id],
        replayed=replayed,
    )


def _question_value(record: QuestionRecord) -> Question:
    return Question(
        record.question_id,
        record.prompt,
        record.left_image_id,
        record.right_image_id,
        record.bits,
        record.choice,  # type: ignore[arg-type]
        record.created,
    )
