"""Pairs: committed in one transaction, kept in arrival order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ppd_serve.errors import InvalidInput, NotFound
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.answers import AnswerStore, answers_about, forget_answers
from ppd_serve.storage.base import new_id
from ppd_serve.storage.blobs import digest_of
from ppd_serve.storage.database import batches, storage_errors
from ppd_serve.storage.images import discard_images, in_use, insert_image
from ppd_serve.storage.loop_records import QuestionRecord
from ppd_serve.storage.records import AnswerRecord, ImageRecord, PairRecord, UserRecord
from ppd_serve.storage.users import (
    UserStore,
    created_user,
    locked_user,
    unknown_user,
    user_value,
)
from ppd_serve.storage.values import (
    AddedPairs,
    Idempotency,
    LoadedPairs,
    NewImage,
    NewPair,
    PairPage,
    StoredPair,
    User,
)
from ppd_serve.storage.versions import drop_versions

_CURSOR = re.compile(r"[0-9]{1,18}")


class PairStore(UserStore, AnswerStore):
    def add_pairs(
        self,
        project: str,
        user_id: str,
        pairs: Sequence[NewPair],
        idempotency: Idempotency | None = None,
    ) -> AddedPairs:
        """Commit all pairs or none, creating the user if need be; the version grows by one.

        The idempotency record commits together with the pairs: whatever dies when, a retry with
        the same key never adds them twice. After a new call (or a replay without an answer) end
        with ``finish_idempotent`` or ``release_idempotent``.

        Raises ``NotFound`` (field ``pairs.N.preferred.image_id``) for an unknown picture,
        ``Conflict`` while the same key is running, ``InvalidInput`` (field ``Idempotency-Key``)
        when the key came with another body before.
        """
        if idempotency is None or not self._is_known(project, idempotency):
            # Files first, so that the transaction, which holds the user's lock, stays short.
            with storage_errors():
                for pair in pairs:
                    for side in (pair.preferred, pair.rejected):
                        if isinstance(side, NewImage):
                            self._blobs.put(side.data)
        with self._database.write() as session:
            claim = None
            if idempotency is not None:
                claim, is_new = self._claim(session, project, idempotency, [user_id])
                if not is_new and claim.added is not None:
                    return AddedPairs(
                        user_id=user_id, replayed=True, answer=claim.answer, **claim.added
                    )
            added = self._add(session, project, user_id, pairs)
            if claim is not None:
                claim.added = {
                    "incarnation": added.incarnation,
                    "version": added.version,
                    "pairs_total": added.pairs_total,
                    "pair_ids": added.pair_ids,
                }
            return added

    def _add(
        self, session: Session, project: str, user_id: str, pairs: Sequence[NewPair]
    ) -> AddedPairs:
        now = self._clock()
        user = created_user(session, project, user_id, now)
        images = self._images_of(session, project, pairs, now)
        pair_ids = []
        for number, (pair, (preferred, rejected)) in enumerate(zip(pairs, images, strict=True)):
            record = PairRecord(
                pair_id=new_id("pair"),
                project=project,
                user_id=user_id,
                position=user.pairs_added + number,
                version=user.version + 1,
                prompt=pair.prompt,
                preferred_image_id=preferred,
                rejected_image_id=rejected,
                created=now,
            )
            session.add(record)
            pair_ids.append(record.pair_id)
        user.version += 1
        user.pairs_total += len(pairs)
        user.pairs_added += len(pairs)
        return AddedPairs(user_id, user.incarnation, user.version, user.pairs_total, pair_ids)

    def _images_of(
        self, session: Session, project: str, pairs: Sequence[NewPair], now: float
    ) -> list[tuple[str, str]]:
        """Image ids of both sides of every pair; new pictures get their rows here."""
        sides = {
            (number, name): side
            for number, pair in enumerate(pairs)
            for name, side in (("preferred", pair.preferred), ("rejected", pair.rejected))
        }
        named = {side for side in sides.values() if isinstance(side, str)}
        live = set(
            session.scalars(
                select(ImageRecord.image_id)
                .where(
                    ImageRecord.project == project,
                    ImageRecord.image_id.in_(named),
                    (ImageRecord.expires > now) | in_use(),
                )
                .order_by(ImageRecord.image_id)
                .with_for_update(read=True)  # nobody deletes it before we have committed
            )
        )
        for (number, name), side in sides.items():
            if isinstance(side, str) and side not in live:
                raise NotFound("There is no such image", field=f"pairs.{number}.{name}.image_id")
        # Blob rows are locked in digest order, as everywhere, so two writers never wait in a ring.
        new = sorted(
            ((place, side) for place, side in sides.items() if isinstance(side, NewImage)),
            key=lambda item: digest_of(item[1].data),
        )
        ids = {place: side for place, side in sides.items() if isinstance(side, str)}
        for place, side in new:
            record = insert_image(session, self._blobs, project, side, "pair", now)
            ids[place] = record.image_id
        return [(ids[n, "preferred"], ids[n, "rejected"]) for n in range(len(pairs))]

    def list_pairs(
        self, project: str, user_id: str, cursor: str | None = None, limit: int = 50
    ) -> PairPage:
        """Oldest first. Raises ``NotFound`` for the user, ``InvalidInput`` for a cursor that no
        page gave. Cursors match ``[A-Za-z0-9_-]+`` and survive deletions."""
        if cursor is not None and not _CURSOR.fullmatch(cursor):
            raise InvalidInput("This is no cursor of ours", field="cursor")
        with self._database.read() as session:
            if session.get(UserRecord, (project, user_id)) is None:
                raise unknown_user()
            records = session.scalars(
                select(PairRecord)
                .filter_by(project=project, user_id=user_id)
                .where(PairRecord.position > (-1 if cursor is None else int(cursor)))
                .order_by(PairRecord.position)
                .limit(limit + 1)
            ).all()
        page = [
            StoredPair(r.pair_id, r.prompt, r.preferred_image_id, r.rejected_image_id, r.created)
            for r in records[:limit]
        ]
        return PairPage(page, str(records[limit - 1].position) if len(records) > limit else None)

    def load_pairs(self, project: str, user_id: str) -> LoadedPairs:
        """All pairs with their bytes, in arrival order, and the version they belong to: one
        consistent view. Raises ``NotFound``."""
        seen = None
        while True:
            with self._database.read() as session:
                user = session.get(UserRecord, (project, user_id))
                if user is None:
                    raise unknown_user()
                rows = session.execute(
                    select(
                        PairRecord.prompt,
                        PairRecord.preferred_image_id,
                        PairRecord.rejected_image_id,
                    )
                    .filter_by(project=project, user_id=user_id)
                    .order_by(PairRecord.position)
                ).all()
                digests: dict[str, str] = {}
                for batch in batches({image for row in rows for image in row[1:]}):
                    digests.update(
                        (image_id, digest)
                        for image_id, digest in session.execute(
                            select(ImageRecord.image_id, ImageRecord.digest).where(
                                ImageRecord.image_id.in_(batch)
                            )
                        )
                    )
            view = (user.incarnation, user.version)
            with storage_errors():
                try:
                    # Each once: a winner may stand in the next pair, and in many.
                    pictures = {digest: self._blobs.get(digest) for digest in digests.values()}
                    pairs = [
                        Pair(prompt, *(pictures[digests[side]] for side in sides))
                        for prompt, *sides in rows
                    ]
                    return LoadedPairs(*view, pairs)
                except FileNotFoundError:
                    if view == seen:  # nobody deleted anything: the file is really missing
                        raise
                    seen = view

    def delete_pair(self, project: str, user_id: str, pair_id: str) -> User | None:
        """Delete one pair, and with it what was read from it: every version of the taste since the
        pair came, in every space, the taste codes of these, and the stored answers that tell of
        them. The question that it answered goes, too, with its pictures unless something else uses
        them. The user with its new version, or ``None``
        if there was no such pair."""
        deleted = None
        with self._database.write() as session:
            try:
                user = locked_user(session, project, user_id)
            except NotFound:
                pass
            else:
                if self._delete_pair(session, user, pair_id):
                    deleted = user_value(user)
        self._drop_doomed_blobs()
        if deleted:
            self._database.scrub()
        return deleted

    def _delete_pair(self, session: Session, user: UserRecord, pair_id: str) -> bool:
        this = {"project": user.project, "user_id": user.user_id, "pair_id": pair_id}
        questions = session.scalars(select(QuestionRecord).filter_by(**this)).all()
        gone = session.execute(
            delete(PairRecord)
            .filter_by(**this)
            .returning(
                PairRecord.version, PairRecord.preferred_image_id, PairRecord.rejected_image_id
            )
        ).one_or_none()
        if gone is None:
            return False
        since, *image_ids = gone
        user.version += 1
        user.pairs_total -= 1
        user.least_version = user.version
        drop_versions(session, user, since, self._clock())
        _forget_added(session, user)
        forget_answers(session, user, [question.question_id for question in questions])
        over = session.scalars(
            select(ImageRecord.image_id).where(
                ImageRecord.image_id.in_(image_ids), ImageRecord.expires <= self._clock()
            )
        ).all()
        # With the question goes what says whose its pictures are: they have no time of their own.
        shown = {side for q in questions for side in (q.left_image_id, q.right_image_id)}
        discard_images(session, shown.union(over))
        return True


def _forget_added(session: Session, user: UserRecord) -> None:
    """Answers to added pairs hold the profile that was read from them. That they were added stays
    known, so that a retry still adds nothing; it gets an answer made anew. One that is being made
    just now is not kept."""
    session.execute(
        update(AnswerRecord)
        .where(answers_about(user), AnswerRecord.added.is_not(None))
        .values(answer=None, owner=None)
        .execution_options(synchronize_session=False)
    )
