"""Users: ``ppd_serve.api.services.Users`` on the store and the index."""

from __future__ import annotations

from ppd_serve.api.schemas import EmbeddingOut, EmbeddingState, Neighbor, NeighborsOut, UserOut
from ppd_serve.errors import NotFound
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.ports import IndexPort
from ppd_serve.gateway.running import Jobs, Tasks, Threads
from ppd_serve.storage.store import Embedding, Store, User
from ppd_serve.storage.values import index_id

ENOUGH_PAIRS = 4  # one full chunk


def embedding_state(space: str, version: int, stored: Embedding | None) -> EmbeddingState:
    """How a stored embedding stands to the user's ``version``."""
    if stored is None:
        return EmbeddingState(space=space, version=0, pairs_used=0, status="pending")
    return EmbeddingState(
        space=space,
        version=stored.version,
        pairs_used=stored.pairs_used,
        status="current" if stored.version >= version else "pending",
    )


class UserService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        jobs: Jobs,
        index: IndexPort,
        feed: Feed,
        space: str,
    ) -> None:
        self._store, self._db, self._tasks, self._jobs = store, db, tasks, jobs
        self._index, self._feed, self._space = index, feed, space

    async def put(self, project: str, user_id: str) -> tuple[UserOut, bool]:
        user, created = await self._db(self._store.put_user, project, user_id)
        return await self._describe(user), created

    async def get(self, project: str, user_id: str) -> UserOut:
        return await self._describe(await self._db(self._store.get_user, project, user_id))

    async def _describe(self, user: User) -> UserOut:
        stored = await self._stored(user.project, user.user_id) if user.pairs_total else None
        return UserOut(
            user_id=user.user_id,
            pairs_total=user.pairs_total,
            embedding=embedding_state(self._space, user.version, stored)
            if user.pairs_total
            else None,
            profile=stored.profile if stored else None,
            ask_more=user.pairs_total < ENOUGH_PAIRS,
        )

    async def delete(self, project: str, user_id: str) -> None:
        await self._tasks.run(self._delete(project, user_id))

    async def _delete(self, project: str, user_id: str) -> None:
        try:
            await self._db(self._store.delete_user, project, user_id)
        finally:  # it may also fail after its commit, while it cleans up
            await self._stop_work(project, user_id)
        await self._feed.must_sync()  # also the second time: the first may have failed here

    async def _stop_work(self, project: str, user_id: str) -> None:
        """Stop what is being read and drawn for the user who is no longer there."""
        keys = await self._db(self._store.user_keys, project, [user_id], self._space)
        living = keys[user_id].incarnation if user_id in keys else None
        self._jobs.stop(project, user_id, living, NotFound("This user was deleted"))

    async def embedding(self, project: str, user_id: str) -> EmbeddingOut:
        stored = await self._need(project, user_id)
        rows, dim = stored.values.shape
        return EmbeddingOut(
            space=stored.space,
            version=stored.version,
            shape=(rows, dim),
            values=stored.values.tolist(),
        )

    async def neighbors(self, project: str, user_id: str, k: int) -> NeighborsOut:
        stored = await self._need(project, user_id)
        found = await self._index.search(
            stored.values.mean(axis=0), k + 1, prefix=index_id(project, "")
        )
        own = index_id(project, stored.incarnation)
        near = {name.rpartition("/")[2]: cosine for name, cosine in found if name != own}
        # The index may still hold somebody who is gone; the database has the last word.
        names = await self._db(self._store.user_ids, project, list(near))
        living = [
            Neighbor(user_id=names[incarnation], similarity=cosine)
            for incarnation, cosine in near.items()
            if incarnation in names
        ]
        return NeighborsOut(neighbors=living[:k])

    async def _need(self, project: str, user_id: str) -> Embedding:
        stored = await self._stored(project, user_id)
        if stored is None:
            await self._db(self._store.get_user, project, user_id)  # unknown, or just no taste yet?
            raise NotFound("This user has no embedding yet")
        return stored

    async def _stored(self, project: str, user_id: str) -> Embedding | None:
        return await self._db(self._store.get_embedding, project, user_id, self._space)
