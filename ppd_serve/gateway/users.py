"""Users: ``ppd_serve.api.services.Users`` on the store and the index."""

from __future__ import annotations

from ppd_serve.api.schemas import EmbeddingOut, EmbeddingState, Neighbor, NeighborsOut, UserOut
from ppd_serve.errors import NotFound
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.generations import DrawingService
from ppd_serve.gateway.ports import IndexPort
from ppd_serve.gateway.running import Tasks, Threads
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
        index: IndexPort,
        feed: Feed,
        drawings: DrawingService,
        space: str,
    ) -> None:
        self._store, self._db, self._tasks = store, db, tasks
        self._index, self._feed, self._drawings, self._space = index, feed, drawings, space

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
        deleted = await self._db(self._store.delete_user, project, user_id)
        if deleted is not None:
            self._drawings.stop(deleted.generation_ids, NotFound("This user was deleted"))
            await self._feed.try_to_sync()

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
