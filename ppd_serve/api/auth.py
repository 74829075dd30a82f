"""Who is calling: API keys name projects, and signed links let a browser fetch one picture."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request

from ppd_serve.errors import Forbidden, Unauthorized
from ppd_serve.storage.values import DEFAULT_PROJECT

LINK_SECONDS = 3600


class Access:
    """``keys``: API key → project; without keys everybody is the project ``default``.
    ``secret`` signs links; ``public_url`` is where clients reach us (default: as they asked).
    ``loopback_only``: without keys, calls that came in over a network are refused."""

    def __init__(
        self,
        secret: bytes,
        keys: Mapping[str, str] | None = None,
        public_url: str | None = None,
        loopback_only: bool = False,
    ) -> None:
        self._secret = secret
        self._loopback_only = loopback_only
        self._projects = {_digest(key): project for key, project in (keys or {}).items()}
        self._public_url = public_url

    def project(self, authorization: str | None, server: str | None = None) -> str:
        """The project of an ``Authorization`` header; ``server``: the address that was called.
        Raises ``Unauthorized``, ``Forbidden``."""
        if not self._projects:
            if self._loopback_only and not (server and is_loopback(server)):
                raise Forbidden("Without API keys only loopback is served")
            return DEFAULT_PROJECT
        scheme, _, key = (authorization or "").partition(" ")
        # Looked up by digest: how long that takes tells nothing about the keys.
        project = self._projects.get(_digest(key.strip()))
        if scheme.lower() != "bearer" or project is None:
            raise Unauthorized("Send a valid key: Authorization: Bearer KEY")
        return project

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


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def access(request: Request) -> Access:
    found: Access = request.app.state.services.access
    return found


def project(request: Request) -> str:
    """Dependency of every route that belongs to somebody."""
    server = request.scope.get("server")
    return access(request).project(
        request.headers.get("authorization"), server[0] if server else None
    )


Project = Annotated[str, Depends(project)]
