"""``Idempotency-Key``: the same key and body get the same answer for a day."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Depends, Header, Request

from ppd_serve.api.schemas import Key
from ppd_serve.storage.values import Idempotency


async def idempotency(
    request: Request, key: Annotated[Key | None, Header(alias="Idempotency-Key")] = None
) -> Idempotency | None:
    if key is None:
        return None
    digest = hashlib.sha256(await request.body()).hexdigest()
    return Idempotency(f"{request.method} {request.url.path}", key, digest)


IdempotencyDep = Annotated[Idempotency | None, Depends(idempotency)]
