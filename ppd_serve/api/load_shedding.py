"""In the HTTP proxy: what the app has just refused for want of places is refused without the app.

Under ten times what can be drawn nine of ten calls are refused, and what each costs between two
processes is taken from those who draw. The app says for how long nobody would get a place
(``FULL_FOR``, seen here and no further). Calls that it may have to answer otherwise go on to it: of
web pages, which may read only what it lets them, and with an ``Idempotency-Key``, whose drawing may
be done already. Neither API keys nor the app's own metrics see what is refused here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppd_serve.api.problems import FULL_FOR, problem
from ppd_serve.errors import QueueFull

DRAWINGS = ("/generate", "/v1/images/generations")
NOT_HERE = ("origin", "idempotency-key")


class LoadShedding:
    """``clock``: seconds, from any zero."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._clock = clock
        self._until = clock()
        self._retry_after = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._clock() < self._until and _asks_for_a_place(scope):
            refusal = problem(QueueFull(retry_after=self._retry_after), scope["path"])
            await refusal(scope, receive, send)
            return

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._learn(MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, listen)

    def _learn(self, headers: MutableHeaders) -> None:
        if seconds := headers.get(FULL_FOR):
            self._until = self._clock() + float(seconds)
            self._retry_after = float(headers["retry-after"])
            del headers[FULL_FOR]


def _asks_for_a_place(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in DRAWINGS:
        return False
    given = Headers(scope=scope)
    return not any(name in given for name in NOT_HERE)
