"""The tables of the taste loop: questions, feedback, past versions of a taste, taste codes.

They refer to the other tables, and no other refers to them.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from ppd_serve.storage.records import Reading, Record, of_user


class QuestionRecord(Record):
    """Two pictures that a user was asked about. It goes with the pair that its answer made. Its
    pictures are named but not held: an unanswered question outlives them."""

    __tablename__ = "questions"
    __table_args__ = (of_user(), Index(None, "project", "user_id"))

    question_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    user_id: Mapped[str]
    prompt: Mapped[str] = mapped_column(Text)
    left_image_id: Mapped[str]
    right_image_id: Mapped[str]
    bits: Mapped[float]
    choice: Mapped[str | None]
    pair_id: Mapped[str | None] = mapped_column(
        ForeignKey("pairs.pair_id", ondelete="CASCADE"), index=True
    )
    created: Mapped[float]


class FeedbackRecord(Record):
    """Whether a user likes a picture that was drawn here for ``prompt``."""

    __tablename__ = "feedback"
    __table_args__ = (of_user(), Index(None, "project", "user_id", "image_id", unique=True))

    feedback_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    user_id: Mapped[str]
    image_id: Mapped[str] = mapped_column(ForeignKey("images.image_id"), index=True)
    prompt: Mapped[str] = mapped_column(Text)
    liked: Mapped[bool]
    created: Mapped[float]


class PastEmbeddingRecord(Reading, Record):
    """One that a newer one has replaced."""

    __tablename__ = "past_embeddings"
    __table_args__ = (of_user(),)

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class TasteCodeRecord(Record):
    """``code`` stands for one version of a user's taste. It is kept as it is: whoever reads this
    table reads the embeddings in the next, and a code opens nothing else."""

    __tablename__ = "taste_codes"
    __table_args__ = (of_user(), Index(None, "project", "user_id"))

    code: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    user_id: Mapped[str]
    version: Mapped[int]
    created: Mapped[float]


class GenerationCodeRecord(Record):
    """A taste code that an unfinished generation draws with. Once it has ended, nothing says whose
    taste it was."""

    __tablename__ = "generation_codes"

    generation_id: Mapped[str] = mapped_column(
        ForeignKey("generations.generation_id", ondelete="CASCADE"), primary_key=True
    )
    code: Mapped[str] = mapped_column(
        ForeignKey("taste_codes.code", ondelete="CASCADE"), primary_key=True, index=True
    )
