"""What each call sends and how its answer is read, without sending anything.

One function per route returns a ``Call``; the two clients only differ in how they carry it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, Unpack
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from .errors import UnexpectedAnswer, api_error
from .images import Picture, as_json, encoded
from .models import (
    Embedding,
    Generation,
    ImageRef,
    Neighbor,
    Neighbors,
    PreferencesAdded,
    PreferencesPage,
    Readiness,
    Releases,
    User,
    UserWeight,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reading of its answer.

    retry: try again when the server cannot be reached or asks to wait. Every call here can be
    repeated: reads, PUT and DELETE by nature; pairs by their Idempotency-Key; an abandoned drawing
    is cancelled by the server and an unused upload expires.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: dict[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    retry: bool = True
    refusals: frozenset[int] = frozenset()  # error statuses that are an answer, not an exception


class Pair(NamedTuple):
    """One choice: what was asked for, the picture preferred, the picture rejected."""

    prompt: str
    preferred: Picture | ImageRef
    rejected: Picture | ImageRef


class Drawing(TypedDict, total=False):
    """Options of a picture; what is left out is the server's default (see ``releases()``)."""

    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    preference_scale: float
    seed: int
    sampler: str


class Drawings(Drawing, total=False):
    """Options of a call that returns several pictures."""

    n: int
    response_format: str  # "b64_json" | "url"


def put_user(user_id: str) -> Call[None]:
    """Create a user; nothing happens if there is one."""
    return Call("PUT", _user(user_id), _nothing)


def get_user(user_id: str) -> Call[User]:
    """What is known about a user. Raises NotFound."""
    return Call("GET", _user(user_id), _model(User))


def delete_user(user_id: str) -> Call[None]:
    """Forget a user: pairs, embeddings, pictures. Also right the second time."""
    return Call("DELETE", _user(user_id), _nothing)


def add_preferences(
    user_id: str,
    pairs: Iterable[Pair | tuple[str, Picture | ImageRef, Picture | ImageRef]],
    *,
    idempotency_key: str | None = None,
) -> Call[PreferencesAdded]:
    """Tell the server what a user preferred; creates the user. When it returns, it is committed.

    idempotency_key: made afresh for each call, so that a retry adds nothing twice; give your own to
    be safe across restarts of your program.
    """
    body = [
        {"prompt": prompt, "preferred": as_json(preferred), "rejected": as_json(rejected)}
        for prompt, preferred, rejected in pairs
    ]
    return Call(
        "POST",
        _user(user_id, "preferences"),
        _model(PreferencesAdded),
        json={"pairs": body},
        headers={"Idempotency-Key": idempotency_key or uuid4().hex},
    )


def preferences_page(
    user_id: str, cursor: str | None = None, limit: int | None = None
) -> Call[PreferencesPage]:
    """One page of a user's pairs, oldest first. ``preferences`` walks over all of them."""
    params = _given(cursor=cursor, limit=limit)
    return Call("GET", _user(user_id, "preferences"), _model(PreferencesPage), params=params)


def delete_preference(user_id: str, pair_id: str) -> Call[None]:
    """Take one choice back. Also right the second time."""
    return Call("DELETE", _user(user_id, "preferences", _id("pair_id", pair_id)), _nothing)


def embedding(user_id: str) -> Call[Embedding]:
    """A user's preference embedding. Raises NotFound while there is none."""
    return Call("GET", _user(user_id, "embedding"), _model(Embedding))


def neighbors(user_id: str, k: int | None = None) -> Call[list[Neighbor]]:
    """The users nearest in taste, nearest first."""
    read = _model(Neighbors)
    path = _user(user_id, "neighbors")
    return Call("GET", path, lambda answer: read(answer).neighbors, params=_given(k=k))


def upload_image(picture: Picture) -> Call[ImageRef]:
    """Send a picture once, to name it in several pairs. Expires if nothing uses it."""
    headers = {"Content-Type": "application/octet-stream"}
    content = encoded(picture)
    return Call("POST", "/images", _model(ImageRef), content=content, headers=headers)


def get_image(image: ImageRef | str) -> Call[bytes]:
    """The encoded bytes of a picture the server holds."""
    return Call("GET", _image(image), _bytes)


def delete_image(image: ImageRef | str) -> Call[None]:
    """Raises Conflict while a pair uses it."""
    return Call("DELETE", _image(image), _nothing)


def generate(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    **options: Unpack[Drawings],
) -> Call[Generation]:
    """Draw to the taste of one user, several (``users={"ann": 0.5, "bob": 0.5}``) or none."""
    body = _drawing(prompt, user_id, users, options)
    return Call("POST", "/generate", _model(Generation), json=body)


def generate_png(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    **options: Unpack[Drawing],
) -> Call[bytes]:
    """Draw one picture and return its PNG bytes."""
    body = _drawing(prompt, user_id, users, options)
    return Call("POST", "/generate", _bytes, json=body, headers={"Accept": "image/png"})


def releases() -> Call[Releases]:
    """What the server draws with, its sizes, samplers and limits."""
    return Call("GET", "/releases", _model(Releases))


def healthz() -> Call[None]:
    """Returns if the server is alive, else raises; asks once."""
    return Call("GET", "/healthz", _nothing, retry=False)


def readyz() -> Call[Readiness]:
    """Whether the server can draw for users now, and if not, what is missing; asks once."""
    return Call("GET", "/readyz", _readiness, retry=False, refusals=frozenset({503}))


# From DESIGN: a letter or digit first, so that no id can be a path of its own ("", "..", "a/b").
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")


def _id(name: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(f"{name}: up to 128 letters, digits or . _ - @ :, a letter or digit first")
    return value


def _user(user_id: str, *rest: str) -> str:
    return "/".join(["/users", _id("user_id", user_id), *rest])


def _image(image: ImageRef | str) -> str:
    return "/images/" + _id("image_id", image if isinstance(image, str) else image.image_id)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _drawing(
    prompt: str,
    user_id: str | None,
    users: Mapping[str, float] | Sequence[UserWeight] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    body = _given(prompt=prompt, user_id=user_id, **options)
    if users is not None:
        if isinstance(users, Mapping):
            users = [UserWeight(user_id=name, weight=weight) for name, weight in users.items()]
        body["users"] = [user.model_dump(exclude_none=True) for user in users]
    return body


def _nothing(answer: httpx.Response) -> None:
    return None


def _bytes(answer: httpx.Response) -> bytes:
    return answer.content


def _model(model: type[M]) -> Callable[[httpx.Response], M]:
    def read(answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            where = f"{answer.request.method} {answer.request.url.path}"
            raise UnexpectedAnswer(f"{where}: not a {model.__name__}: {error}") from error

    return read


def _readiness(answer: httpx.Response) -> Readiness:
    if answer.is_success:
        return Readiness(ready=True)
    return Readiness(ready=False, detail=api_error(answer).detail)
