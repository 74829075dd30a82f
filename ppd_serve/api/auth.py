"""Who is calling and what they may do: API keys name projects, and signed links let a browser fetch
one picture."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ppd_serve.api.usage import Slot, Usage
from ppd_serve.errors import Forbidden, Unauthorized
from ppd_serve.keys import EVERYTHING, ApiKey, Scope, digest
from ppd_serve.storage.values import DEFAULT_PROJECT

LINK_SECONDS = 3600
WORK = ("POST", "PUT")


class Keys(Protocol):
    async def known(self) -> Mapping[str, ApiKey]:
        """Digest → key, of all that were ever stored, as they were a few seconds ago or later."""


class Access:
    """``keys``: API key → project, beside the stored ones; where there has never been any key,
    everybody is the project ``default``. ``secret`` signs links; ``public_url`` is where clients
    reach us (default: as they asked). ``loopback_only``: without keys, calls that came in over a
    network are refused. ``usage``: what has been used of the keys' limits."""

    def __init__(
        self,
        secret: bytes,
        keys: Mapping[str, str] | None = None,
        public_url: str | None = None,
        loopback_only: bool = False,
        usage: Usage | None = None,
    ) -> None:
        self._secret = secret
        self._loopback_only = loopback_only
        self._keys = {digest(key): ApiKey("", project) for key, project in (keys or {}).items()}
        self._public_url = public_url
        self.usage = usage or Usage()

    def key(
        self, sent: str | None, stored: Mapping[str, ApiKey], server: str | None = None
    ) -> ApiKey:
        """The key that was ``sent``, told from the ``stored`` ones (by digest) and our own;
        ``server``: the address that was called. Raises ``Unauthorized``, ``Forbidden``."""
        if not (self._keys or stored):
            if self._loopback_only and not (server and is_loopback(server)):
                raise Forbidden("Without API keys only loopback is served")
            return ApiKey("", DEFAULT_PROJECT)
        sought = digest(sent or "")
        key = self._keys.get(sought) or stored.get(sought)
        if key is None or not key.is_live(time.time()):
            raise Unauthorized("Send a valid key: Authorization: Bearer KEY")
        return key

    def link(self, base_url: str, project: str, image_id: str) -> str:
        """An absolute address of a picture that needs no key for an hour."""
        expires = int(time.time()) + LINK_SECONDS
        signature = self._sign(project, image_id, expires)
        base = (self._public_url or base_url).rstrip("/")
        query = f"project={project}&expires={expires}&signature={signature}"
        return f"{base}/images/{image_id}?{query}"

    def check_link(self, project: str, image_id: str, expires: int, signature: str) -> None:
        """Raises ``Forbidden`` if the link was not made here or is too old."""
        right = self._sign(project, image_id, expires)
        if not hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace")):
            raise Forbidden("This link was not signed here")
        if expires < time.time():
            raise Forbidden("This link has expired")

    def _sign(self, project: str, image_id: str, expires: int) -> str:
        message = f"{project}\n{image_id}\n{expires}".encode("utf-8", "replace")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether an address, or the name ``localhost``, can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Caller:
    """``slot``: what a drawing holds if it goes on after the call."""

    project: str
    slot: Slot


def access(request: Request) -> Access:
    found: Access = request.app.state.services.access
    return found


_bearer = HTTPBearer(auto_error=False, description="An API key, where the server has any")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@asynccontextmanager
async def admitted(
    request: Request, credentials: HTTPAuthorizationCredentials | None, scopes: frozenset[Scope]
) -> AsyncIterator[Caller]:
    """Let a call in that has a key with one of ``scopes``, and count it until it is answered, to
    the end of a stream. Raises ``Unauthorized``, ``Forbidden``, ``LimitExceeded``."""
    keys: Keys = request.app.state.services.keys
    usage, server = access(request).usage, request.scope.get("server")
    sent = credentials.credentials.strip() if credentials else None
    key = access(request).key(sent, await keys.known(), server[0] if server else None)
    if not key.scopes & scopes:
        raise Forbidden(f"This key needs the scope {' or '.join(sorted(scopes))}")
    try:
        slot = usage.take(key, work=request.method in WORK)
    finally:
        request.state.headers = usage.headers(key)  # of any answer: the Edge adds them
    try:
        yield Caller(key.project, slot)
    finally:
        slot.release()


async def _project(request: Request, credentials: Credentials) -> AsyncIterator[str]:
    needed = Scope.READ if request.method == "GET" else Scope.WRITE
    async with admitted(request, credentials, frozenset({needed})) as caller:
        yield caller.project


async def _common(request: Request, credentials: Credentials) -> AsyncIterator[str]:
    async with admitted(request, credentials, EVERYTHING) as caller:
        yield caller.project


async def _drawing(request: Request, credentials: Credentials) -> AsyncIterator[Caller]:
    others = {Scope.READ} if request.method == "GET" else set()
    async with admitted(request, credentials, frozenset({Scope.GENERATE, *others})) as caller:
        yield caller


async def _metrics(request: Request, credentials: Credentials) -> AsyncIterator[None]:
    async with admitted(request, credentials, frozenset({Scope.METRICS})):
        yield


# The dependencies of routes; each asks for a key, and the first two tell its project.
Project = Annotated[str, Depends(_project)]
"""Of what belongs to somebody: a GET needs the scope ``read``, everything else ``write``."""
Common = Annotated[str, Depends(_common)]
"""Of what belongs to nobody: any scope will do."""
Drawing = Annotated[Caller, Depends(_drawing)]
"""Of drawings: ``generate``; for a GET, ``read`` will do as well."""
MetricsAllowed = Depends(_metrics)
"""Of the server's own figures: ``metrics``."""
