"""Every error the server raises on purpose.

PPDError
├── InvalidInput            422  a field of a request is wrong (named; its value is never echoed)
│   └── BadImage            422  bytes that are not a picture we accept
├── Unauthorized            401
├── Forbidden               403
├── NotFound                404
├── NotAcceptable           406  nothing that ``Accept`` names can be given
├── Conflict                409  the same key is running, a picture is in use, another answer
├── Gone                    410  what this was about has expired
├── TooLarge                413
├── LimitExceeded           429  too much for this key just now; carries ``retry_after`` seconds
├── Unavailable             503  carries ``retry_after`` seconds
│   ├── QueueFull           503
│   ├── EncoderUnavailable  503
│   ├── StorageUnavailable  503
│   └── ActorUnavailable    503
├── Unsupported             501  this release does not do that
├── GenerationFailed        500  this picture, and only this one, could not be made
├── Cancelled               499  the caller went away or asked to stop
├── Interrupted             500  the server died while this was running
└── ReleaseError            500  a release that cannot be served (start-up)

Errors cross process borders inside Ray, so each one pickles: arguments are plain values and
``__reduce__`` rebuilds the object from them.
"""

from __future__ import annotations

from typing import Any


class PPDError(Exception):
    """Base class. ``type`` is the stable, last part of the problem document's type URI."""

    type = "internal"
    title = "Internal error"
    status = 500

    def __init__(
        self, detail: str = "", *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail or self.title
        self.field = field
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.detail, self.field, self.retry_after)

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail


def _rebuild(
    cls: type[PPDError], detail: str, field: str | None, retry_after: float | None
) -> PPDError:
    return cls(detail, field=field, retry_after=retry_after)


class InvalidInput(PPDError):
    type, title, status = "invalid-input", "Invalid input", 422


class BadImage(InvalidInput):
    type, title = "bad-image", "Not an acceptable image"


class Unauthorized(PPDError):
    type, title, status = "unauthorized", "Missing or unknown API key", 401


class Forbidden(PPDError):
    type, title, status = "forbidden", "Not allowed", 403


class NotFound(PPDError):
    type, title, status = "not-found", "Not found", 404


class NotAcceptable(PPDError):
    type, title, status = "not-acceptable", "Not acceptable", 406


class Conflict(PPDError):
    type, title, status = "conflict", "Conflict", 409


class Gone(PPDError):
    type, title, status = "gone", "Gone", 410


class TooLarge(PPDError):
    type, title, status = "too-large", "Request body too large", 413


class LimitExceeded(PPDError):
    type, title, status = "limit-exceeded", "More than this key may do", 429

    def __init__(
        self, detail: str = "", *, field: str | None = None, retry_after: float | None = 1.0
    ) -> None:
        super().__init__(detail, field=field, retry_after=retry_after)


class Unavailable(PPDError):
    type, title, status = "unavailable", "Temporarily unavailable", 503

    def __init__(
        self, detail: str = "", *, field: str | None = None, retry_after: float | None = 1.0
    ) -> None:
        super().__init__(detail, field=field, retry_after=retry_after)


class QueueFull(Unavailable):
    """``lasts``: for how many seconds nobody will be asked for a place."""

    type, title = "queue-full", "The queue is full"
    lasts = 0.0


class EncoderUnavailable(Unavailable):
    type, title = "encoder-unavailable", "The encoder is not available"


class StorageUnavailable(Unavailable):
    type, title = "storage-unavailable", "The database or the blob store is not available"


class ActorUnavailable(Unavailable):
    type, title = "actor-unavailable", "A part of the server is restarting"


class Unsupported(PPDError):
    type, title, status = "unsupported", "Not supported by this release", 501


class GenerationFailed(PPDError):
    type, title = "generation-failed", "The picture could not be made"


class Cancelled(PPDError):
    type, title, status = "cancelled", "Cancelled", 499


class Interrupted(PPDError):
    type, title = "interrupted", "The server stopped while this was running"


class ReleaseError(PPDError):
    type, title = "release", "This release cannot be served"
