"""Feedback: whether a user likes a picture that was drawn here. It keeps the picture."""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from ppd_serve.errors import InvalidInput, NotFound
from ppd_serve.storage.answers import forget_answers
from ppd_serve.storage.base import new_id
from ppd_serve.storage.images import discard_images, in_use
from ppd_serve.storage.loop_records import FeedbackRecord, QuestionRecord
from ppd_serve.storage.records import GenerationRecord, GenerationUserRecord, ImageRecord
from ppd_serve.storage.users import UserStore, created_user, locked_user
from ppd_serve.storage.values import Feedback, Place


class FeedbackStore(UserStore):
    def put_feedback(self, project: str, user_id: str, image_id: str, liked: bool) -> Feedback:
        """Keep what the user thinks of the picture, creating the user if need be; it takes the
        place of what they thought before. Raises ``NotFound`` for the picture, ``InvalidInput``
        when it was not drawn here, or for others only."""
        with self._database.write() as session:
            created_user(session, project, user_id, self._clock())
            image = session.scalar(
                select(ImageRecord)
                .where(
                    ImageRecord.image_id == image_id,
                    ImageRecord.project == project,
                    or_(ImageRecord.expires > self._clock(), in_use()),
                )
                .with_for_update(read=True)  # nobody deletes it before we have committed
            )
            if image is None:
                raise NotFound("There is no such image", field="image_id")
            record = session.scalar(
                select(FeedbackRecord).filter_by(
                    project=project, user_id=user_id, image_id=image_id
                )
            )
            if record is None:
                record = FeedbackRecord(
                    feedback_id=new_id("feedback"),
                    project=project,
                    user_id=user_id,
                    image_id=image_id,
                    prompt=_prompt(session, project, user_id, image),
                )
                session.add(record)
            record.liked, record.created = liked, self._clock()
            return _feedback_value(record)

    def list_feedback(self, project: str, user_id: str, after: Place, limit: int) -> list[Feedback]:
        """The user's, oldest first, that follow ``after``; none for nobody."""
        with self._database.read() as session:
            place = tuple_(FeedbackRecord.created, FeedbackRecord.feedback_id)
            records = session.scalars(
                select(FeedbackRecord)
                .filter_by(project=project, user_id=user_id)
                .where(place > after)
                .order_by(FeedbackRecord.created, FeedbackRecord.feedback_id)
                .limit(limit)
            )
            return [_feedback_value(record) for record in records]

    def delete_feedback(self, project: str, user_id: str, feedback_id: str) -> None:
        """Take it back; also right the second time. A picture goes with it whose time is over, or
        whose question, or generation, is gone."""
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                return
            image_ids = session.scalars(
                delete(FeedbackRecord)
                .filter_by(project=project, user_id=user_id, feedback_id=feedback_id)
                .returning(FeedbackRecord.image_id)
            ).all()
            if image_ids:
                forget_answers(session, user, [feedback_id])
            asked = select(QuestionRecord).filter_by(project=project, user_id=user_id)
            over = session.scalars(
                select(ImageRecord.image_id).where(
                    ImageRecord.image_id.in_(image_ids),
                    (ImageRecord.expires <= self._clock())
                    | (
                        ImageRecord.generation_id.is_(None)
                        & ~asked.where(_shows(ImageRecord.image_id)).exists()
                    ),
                )
            ).all()
            discard_images(session, over)
        self._drop_doomed_blobs()
        if image_ids:
            self._database.scrub()


def _shows(image_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether a question shows the picture."""
    return or_(QuestionRecord.left_image_id == image_id, QuestionRecord.right_image_id == image_id)


def _feedback_value(record: FeedbackRecord) -> Feedback:
    return Feedback(
        record.feedback_id, record.image_id, record.prompt, record.liked, record.created
    )


def _prompt(session: Session, project: str, user_id: str, image: ImageRecord) -> str:
    """Of a picture that was drawn for this user, in a question or at somebody's wish, or for
    nobody in particular."""
    asked = session.scalar(
        select(QuestionRecord.prompt)
        .filter_by(project=project, user_id=user_id)
        .where(_shows(image.image_id))
        .limit(1)
    )
    if asked is not None:
        return asked
    drawn = session.get(GenerationRecord, image.generation_id) if image.generation_id else None
    users = session.scalars(
        select(GenerationUserRecord.user_id).filter_by(generation_id=image.generation_id)
    ).all()
    if drawn is None or (users and user_id not in users):
        raise InvalidInput("This picture was not drawn for this user", field="image_id")
    return str(drawn.request["prompt"])
