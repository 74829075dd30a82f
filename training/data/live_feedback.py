"""Likes and dislikes from a server's database and pictures, also while it runs: single pictures and
one person's verdict on each, as Diffusion-KTO takes them. ``live.py`` says how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import select

from ppd_serve.storage.blobs import Blobs, digest_of
from ppd_serve.storage.database import Database, storage_errors
from ppd_serve.storage.loop_records import FeedbackRecord
from ppd_serve.storage.records import ImageRecord
from ppd_serve.storage.values import DEFAULT_PROJECT
from training.data.choices import Skipped
from training.data.live import open_live, people, picture_bytes
from training.data.readings import Split


@dataclass(frozen=True)
class Verdict:
    """``user`` liked the picture that was drawn for ``prompt``, or did not."""

    user: str
    prompt: str
    picture: bytes = field(repr=False)
    picture_id: str
    liked: bool


class _Stored(NamedTuple):
    feedback_id: str
    prompt: str
    digest: str
    liked: bool


def live_feedback(
    database_url: str,
    blob_url: str,
    skipped: Skipped,
    *,
    project: str = DEFAULT_PROJECT,
    users: Split | None = None,
) -> Iterator[Verdict]:
    """All feedback of a project, or of its people in one split, person by person, each person's
    oldest first. Arguments and errors as in ``live.live_choices``."""
    database, blobs = open_live(database_url, blob_url)
    return _verdicts(database, blobs, skipped, project, users)


def _verdicts(
    database: Database, blobs: Blobs, skipped: Skipped, project: str, users: Split | None
) -> Iterator[Verdict]:
    with closing(database):
        for user, user_id in people(database, project, users):
            for said in _feedback(database, project, user_id):
                with storage_errors():
                    picture = picture_bytes(blobs, said.digest)
                if not _stands(database, said):
                    continue
                if picture is None:
                    skipped.reasons["no picture"] += 1
                elif digest_of(picture) != said.digest:
                    skipped.reasons["broken picture"] += 1
                else:
                    skipped.kept += 1
                    yield Verdict(user, said.prompt, picture, said.digest, said.liked)


def _feedback(database: Database, project: str, user_id: str) -> list[_Stored]:
    with database.read() as session:
        rows = session.execute(
            select(
                FeedbackRecord.feedback_id,
                FeedbackRecord.prompt,
                ImageRecord.digest,
                FeedbackRecord.liked,
            )
            .join(ImageRecord, ImageRecord.image_id == FeedbackRecord.image_id)
            .where(FeedbackRecord.project == project, FeedbackRecord.user_id == user_id)
            .order_by(FeedbackRecord.created, FeedbackRecord.feedback_id)
        )
        return [_Stored(*row) for row in rows]


def _stands(database: Database, said: _Stored) -> bool:
    """Whether it is still there and says the same."""
    with database.read() as session:
        record = session.get(FeedbackRecord, said.feedback_id)
        return record is not None and record.liked == said.liked
