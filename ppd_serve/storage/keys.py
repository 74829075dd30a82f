"""API keys, as digests: whoever reads the database learns no key."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from ppd_serve.errors import InvalidInput, NotFound
from ppd_serve.keys import EVERYTHING, ApiKey, Scope, digest, is_project, new_key
from ppd_serve.storage.base import StoreBase
from ppd_serve.storage.records import KeyRecord

DAY_SECONDS = 24 * 3600.0


class KeyStore(StoreBase):
    def create_key(
        self,
        project: str,
        *,
        name: str = "",
        scopes: Iterable[Scope] = EVERYTHING,
        rate_per_minute: int | None = None,
        concurrency: int | None = None,
        days: float | None = None,
    ) -> tuple[ApiKey, str]:
        """The key's description, and the key itself, which nobody can ever read again. It lives
        for so many ``days``. Raises ``InvalidInput``."""
        if not is_project(project):
            raise InvalidInput("A project is letters, digits, - and _", field="project")
        if not (wanted := frozenset(scopes)):
            raise InvalidInput("A key needs a scope", field="scope")
        limits = {"rate_per_minute": rate_per_minute, "concurrency": concurrency, "days": days}
        for field, value in limits.items():
            if value is not None and value <= 0:
                raise InvalidInput("A limit is more than 0", field=field)
        id, key = new_key()
        now = self._clock()
        made = ApiKey(
            id=id,
            project=project,
            scopes=wanted,
            name=name,
            rate_per_minute=rate_per_minute,
            concurrency=concurrency,
            created=now,
            expires=None if days is None else now + days * DAY_SECONDS,
        )
        with self._database.write() as session:
            session.add(
                KeyRecord(**{**vars(made), "scopes": " ".join(sorted(wanted))}, digest=digest(key))
            )
        return made, key

    def keys(self) -> dict[str, ApiKey]:
        """Digest → key, oldest first. Also the expired and the revoked: that there has ever been a
        key says that keys are asked for here."""
        with self._database.read() as session:
            records = session.scalars(select(KeyRecord).order_by(KeyRecord.created, KeyRecord.id))
            return {record.digest: _key(record) for record in records}

    def revoke_key(self, id: str) -> None:
        """Also right the second time. Raises ``NotFound``."""
        with self._database.write() as session:
            record = session.get(KeyRecord, id, with_for_update=True)
            if record is None:
                raise NotFound("There is no such key", field="id")
            if record.revoked is None:
                record.revoked = self._clock()


def _key(record: KeyRecord) -> ApiKey:
    return ApiKey(
        id=record.id,
        project=record.project,
        scopes=frozenset(map(Scope, record.scopes.split())),
        name=record.name,
        rate_per_minute=record.rate_per_minute,
        concurrency=record.concurrency,
        created=record.created,
        expires=record.expires,
        revoked=record.revoked,
    )
