"""Choices: committed first, read by the encoder after, and never a 5xx in between."""

from __future__ import annotations

import logging

from ppd_serve.api.images import check_image, decode_base64
from ppd_serve.api.schemas import (
    EmbeddingState,
    ImageIn,
    ImageOut,
    PairOut,
    PairsOut,
    PreferencesIn,
    PreferencesOut,
)
from ppd_serve.errors import NotFound, Unavailable
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.running import Jobs, Tasks, Threads
from ppd_serve.gateway.taste_codes import stop_withdrawn
from ppd_serve.gateway.tastes import Tastes
from ppd_serve.gateway.unread import Unread
from ppd_serve.gateway.users import embedding_state
from ppd_serve.storage.store import AddedPairs, Embedding, Idempotency, NewImage, NewPair, Store

log = logging.getLogger(__name__)


class PreferenceService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        decoders: Threads,
        tasks: Tasks,
        idempotency_keys: IdempotencyKeys,
        tastes: Tastes,
        unread: Unread,
        feed: Feed,
        jobs: Jobs,
    ) -> None:
        self._store, self._db, self._decoders, self._tasks = store, db, decoders, tasks
        self._jobs = jobs
        self._idempotency, self._tastes = idempotency_keys, tastes
        self._unread, self._feed = unread, feed

    async def add(
        self, project: str, user_id: str, body: PreferencesIn, idempotency: Idempotency | None
    ) -> PreferencesOut:
        pairs = await self._decoders(_checked, body)
        return await self._tasks.run(self._add(project, user_id, pairs, idempotency))

    async def _add(
        self, project: str, user_id: str, pairs: list[NewPair], idempotency: Idempotency | None
    ) -> PreferencesOut:
        try:
            added = await self._db(self._store.add_pairs, project, user_id, pairs, idempotency)
        except Unavailable:
            if idempotency is not None:  # the connection may have broken after the commit
                await self._idempotency.release(project, idempotency)
            raise
        if added.answer is not None:
            return PreferencesOut.model_validate(added.answer)
        answer = await self.answer(project, added)
        if idempotency is not None:
            await self._idempotency.keep(project, idempotency, answer.model_dump())
        return answer

    async def answer(self, project: str, added: AddedPairs) -> PreferencesOut:
        """The pairs are committed: from here on everything that fails means ``pending``."""
        stored = await self._stored(project, added)
        if stored is not None and stored.version >= added.version:  # somebody has read it by now
            return self._told(added, stored)
        who = (project, added.user_id, added.incarnation, added.version)
        try:
            taste = await self._tastes.read(*who)
        except NotFound:
            pass  # deleted meanwhile: there is nothing left to read
        except Exception as error:
            log.warning("pairs are committed and wait for the encoder: %r", error)
            self._unread.later(*who)
        else:
            state = EmbeddingState(
                space=self._tastes.space,
                version=taste.version,
                pairs_used=taste.pairs_used,
                status="current",
            )
            return _answer(added, state, taste.profile)
        return self._told(added, await self._stored(project, added))

    def _told(self, added: AddedPairs, stored: Embedding | None) -> PreferencesOut:
        state = embedding_state(self._tastes.space, added.version, stored)
        return _answer(added, state, stored.profile if stored else None)

    async def _stored(self, project: str, added: AddedPairs) -> Embedding | None:
        try:
            stored = await self._db(
                self._store.get_embedding, project, added.user_id, self._tastes.space
            )
        except Exception:
            return None
        return stored if stored and stored.incarnation == added.incarnation else None

    async def page(self, project: str, user_id: str, cursor: str | None, limit: int) -> PairsOut:
        page = await self._db(self._store.list_pairs, project, user_id, cursor, limit)
        pairs = [
            PairOut(
                pair_id=pair.pair_id,
                prompt=pair.prompt,
                preferred=ImageOut(image_id=pair.preferred_image_id),
                rejected=ImageOut(image_id=pair.rejected_image_id),
                created=pair.created,
            )
            for pair in page.pairs
        ]
        return PairsOut(pairs=pairs, next=page.next)

    async def delete(self, project: str, user_id: str, pair_id: str) -> None:
        await self._tasks.run(self._delete(project, user_id, pair_id))

    async def _delete(self, project: str, user_id: str, pair_id: str) -> None:
        try:
            user = await self._db(self._store.delete_pair, project, user_id, pair_id)
            if user is not None and user.pairs_total:
                # Pictures wait for a new reading from now on: begin it.
                self._unread.later(project, user_id, user.incarnation, user.version)
        finally:  # it may also fail after its commit, while it cleans up
            await stop_withdrawn(self._store, self._db, self._jobs, project)
        await self._feed.must_sync()  # the embedding went, too, now or in an earlier call


def _answer(added: AddedPairs, state: EmbeddingState, profile: str | None) -> PreferencesOut:
    return PreferencesOut(
        user_id=added.user_id,
        pair_ids=added.pair_ids,
        pairs_total=added.pairs_total,
        embedding=state,
        profile=profile,
    )


def _checked(body: PreferencesIn) -> list[NewPair]:
    return [
        NewPair(
            pair.prompt,
            _side(pair.preferred, f"pairs.{number}.preferred"),
            _side(pair.rejected, f"pairs.{number}.rejected"),
        )
        for number, pair in enumerate(body.pairs)
    ]


def _side(image: ImageIn, field: str) -> NewImage | str:
    if image.image_id is not None:
        return image.image_id
    field = f"{field}.b64_json"
    return check_image(decode_base64(image.b64_json or "", field), field)
