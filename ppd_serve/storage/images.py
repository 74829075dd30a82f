"""Pictures: random ids over deduplicated blobs, expiry, and the collection of blobs.

Who uses a blob is a query over ``images``. Two rules keep a blob from being collected under a
writer's hands, and from staying behind: a writer locks the blob's row before it looks whether the
file is there, and the collector deletes the file while it holds the same lock.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from ppd_serve.errors import Conflict, NotFound
from ppd_serve.storage.base import StoreBase, new_id
from ppd_serve.storage.blobs import Blobs, digest_of
from ppd_serve.storage.database import batches, insert, storage_errors
from ppd_serve.storage.loop_records import FeedbackRecord
from ppd_serve.storage.records import BlobRecord, GenerationRecord, ImageRecord, PairRecord
from ppd_serve.storage.values import UNFINISHED, Image, ImageKind, NewImage

_DAY = 24 * 3600.0
# A picture that came inside a pair has no other use: it goes with its last pair.
LIFETIME: dict[ImageKind, float] = {"upload": _DAY, "generated": 7 * _DAY, "pair": 0.0}


class ImageStore(StoreBase):
    def add_image(
        self,
        project: str,
        image: NewImage,
        kind: ImageKind = "upload",
        generation_id: str | None = None,
        position: int | None = None,
    ) -> Image:
        """Store a picture under a new random id. It expires when nothing uses it: uploads after
        24 h, generated ones after 7 d. With ``generation_id`` it belongs to that record, at
        ``position`` or in the order of calls. Raises ``NotFound`` when the record is gone (its
        user was deleted), ``Conflict`` when it has ended: a late picture is not kept."""
        with storage_errors():
            self._blobs.put(image.data)
        with self._database.write() as session:
            place = position or 0
            if generation_id is not None:
                record = session.get(GenerationRecord, generation_id, with_for_update=True)
                if record is None or record.project != project:
                    raise NotFound("There is no such generation", field="generation_id")
                if record.state not in UNFINISHED:
                    raise Conflict("The generation has ended", field="generation_id")
                if position is None:
                    place = (
                        session.scalar(
                            select(func.count())
                            .select_from(ImageRecord)
                            .filter_by(generation_id=generation_id)
                        )
                        or 0
                    )
            return image_value(
                insert_image(
                    session,
                    self._blobs,
                    project,
                    image,
                    kind,
                    self._clock(),
                    generation_id=generation_id,
                    position=place,
                )
            )

    def get_image(self, project: str, image_id: str) -> Image:
        """Raises ``NotFound``, also for an expired one."""
        return image_value(self._image(project, image_id))

    def read_image(self, project: str, image_id: str) -> tuple[Image, bytes]:
        """The picture and its bytes. Raises ``NotFound``."""
        record = self._image(project, image_id)
        with storage_errors():
            try:
                return image_value(record), self._blobs.get(record.digest)
            except FileNotFoundError:
                self._image(project, image_id)  # deleted meanwhile: NotFound
                raise

    def _image(self, project: str, image_id: str) -> ImageRecord:
        with self._database.read() as session:
            record = session.scalar(
                select(ImageRecord).where(
                    ImageRecord.image_id == image_id,
                    ImageRecord.project == project,
                    or_(ImageRecord.expires > self._clock(), in_use()),
                )
            )
        if record is None:
            raise NotFound("There is no such image", field="image_id")
        return record

    def delete_image(self, project: str, image_id: str) -> bool:
        """False when there was none. Raises ``Conflict`` while a pair or feedback uses it."""
        with self._database.write() as session:
            record = session.get(ImageRecord, image_id, with_for_update=True)
            found = record is not None and record.project == project
            if found and not discard_images(session, [image_id]):
                raise Conflict("A pair or feedback uses this image", field="image_id")
        self._drop_doomed_blobs()
        return found

    def _drop_expired_images(self) -> int:
        dropped = 0
        while True:
            with self._database.write() as session:
                expired = session.scalars(
                    select(ImageRecord.image_id)
                    .where(ImageRecord.expires <= self._clock(), ~in_use())
                    .limit(500)
                ).all()
                gone = discard_images(session, expired)
            if not gone:
                return dropped
            dropped += gone

    def _drop_doomed_blobs(self) -> int:
        """Delete the files that nothing uses any more, and their rows with them."""
        dropped = 0
        while True:
            with self._database.write() as session:
                doomed = set(
                    session.scalars(
                        select(BlobRecord.digest)
                        .where(BlobRecord.doomed)
                        .order_by(BlobRecord.digest)
                        .limit(500)
                        .with_for_update()
                    )
                )
                if not doomed:
                    return dropped
                used = set(
                    session.scalars(
                        select(ImageRecord.digest).where(ImageRecord.digest.in_(doomed)).distinct()
                    )
                )
                for digest in doomed - used:
                    self._blobs.delete(digest)
                session.execute(delete(BlobRecord).where(BlobRecord.digest.in_(doomed - used)))
                session.execute(
                    update(BlobRecord).where(BlobRecord.digest.in_(used)).values(doomed=False)
                )
                dropped += len(doomed - used)

    def _drop_orphans(self) -> int:
        """Doom and drop files that no transaction ever committed to."""
        for batch in batches(self._blobs.digests()):
            with self._database.write() as session:
                known = set(
                    session.scalars(select(BlobRecord.digest).where(BlobRecord.digest.in_(batch)))
                )
                for digest in sorted(set(batch) - known):
                    session.execute(
                        insert(session, BlobRecord)
                        .values(digest=digest, doomed=True)
                        .on_conflict_do_nothing()
                    )
        return self._drop_doomed_blobs()


def in_use() -> ColumnElement[bool]:
    """Whether a pair or feedback uses the image of the enclosing query. A lookup in each index."""
    return or_(
        exists().where(PairRecord.preferred_image_id == ImageRecord.image_id),
        exists().where(PairRecord.rejected_image_id == ImageRecord.image_id),
        exists().where(FeedbackRecord.image_id == ImageRecord.image_id),
    )


def insert_image(
    session: Session,
    blobs: Blobs,
    project: str,
    image: NewImage,
    kind: ImageKind,
    now: float,
    *,
    generation_id: str | None = None,
    position: int = 0,
) -> ImageRecord:
    """Write the image's row, and its blob if the collector took it since it was first put."""
    digest = digest_of(image.data)
    session.execute(
        insert(session, BlobRecord)
        .values(digest=digest, doomed=False)
        .on_conflict_do_update(index_elements=[BlobRecord.digest], set_={"doomed": False})
    )
    blobs.put(image.data)
    record = ImageRecord(
        image_id=new_id("img"),
        project=project,
        digest=digest,
        kind=kind,
        media_type=image.media_type,
        width=image.width,
        height=image.height,
        size=len(image.data),
        created=now,
        expires=now + LIFETIME[kind],
        generation_id=generation_id,
        position=position,
    )
    session.add(record)
    session.flush()
    return record


def discard_images(session: Session, image_ids: Iterable[str]) -> int:
    """Delete those that nothing uses and doom their blobs; how many there were."""
    dropped = 0
    for batch in batches(sorted(set(image_ids))):
        # Lock first and look second: a pair that is just being committed must be seen.
        session.execute(
            select(ImageRecord.image_id)
            .where(ImageRecord.image_id.in_(batch))
            .order_by(ImageRecord.image_id)
            .with_for_update()
        )
        digests = session.scalars(
            delete(ImageRecord)
            .where(ImageRecord.image_id.in_(batch), ~in_use())
            .returning(ImageRecord.digest)
        ).all()
        session.scalars(
            select(BlobRecord.digest)
            .where(BlobRecord.digest.in_(digests))
            .order_by(BlobRecord.digest)  # everyone locks in this order
            .with_for_update()
        ).all()
        session.execute(
            update(BlobRecord).where(BlobRecord.digest.in_(digests)).values(doomed=True)
        )
        dropped += len(digests)
    return dropped


def image_value(record: ImageRecord) -> Image:
    return Image(
        image_id=record.image_id,
        project=record.project,
        kind=record.kind,  # type: ignore[arg-type]
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        size=record.size,
        created=record.created,
        expires=record.expires,
    )
