"""What each call sends and how its answer is read, without sending anything.

One function per route returns a ``Call``; the two clients only differ in how they carry it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import uuid4

import httpx

from .call import Call, checked_id, given, nothing, raw, typed, user_path
from .errors import api_error
from .images import Picture, as_json, encoded
from .models import (
    Embedding,
    Generation,
    GenerationRecord,
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
    guidance_interval: tuple[float, float]  # from and to, as shares of the steps
    preference_scale: float
    seed: int
    sampler: str


class Drawings(Drawing, total=False):
    """Options of a call that returns several pictures."""

    n: int
    response_format: str  # "b64_json" | "url"


def put_user(user_id: str) -> Call[None]:
    """Create a user; nothing happens if there is one."""
    return Call("PUT", user_path(user_id), nothing)


def get_user(user_id: str) -> Call[User]:
    """What is known about a user. Raises NotFound."""
    return Call("GET", user_path(user_id), typed(User))


def delete_user(user_id: str) -> Call[None]:
    """Forget a user: pairs, embeddings, pictures. Also right the second time."""
    return Call("DELETE", user_path(user_id), nothing)


def export_user(user_id: str) -> Call[httpx.Response]:
    """Everything the server holds about a user, as a ZIP archive. Raises NotFound."""
    return Call("GET", user_path(user_id, "export"), _itself, stream=True)


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
        user_path(user_id, "preferences"),
        typed(PreferencesAdded),
        json={"pairs": body},
        headers={"Idempotency-Key": idempotency_key or uuid4().hex},
    )


def preferences_page(
    user_id: str, cursor: str | None = None, limit: int | None = None
) -> Call[PreferencesPage]:
    """One page of a user's pairs, oldest first. ``preferences`` walks over all of them."""
    params = given(cursor=cursor, limit=limit)
    return Call("GET", user_path(user_id, "preferences"), typed(PreferencesPage), params=params)


def delete_preference(user_id: str, pair_id: str) -> Call[None]:
    """Take one choice back. Also right the second time."""
    return Call(
        "DELETE", user_path(user_id, "preferences", checked_id("pair_id", pair_id)), nothing
    )


def embedding(user_id: str, version: int | None = None) -> Call[Embedding]:
    """A user's preference embedding, the newest or that of a version. Raises NotFound."""
    params = given(version=version)
    return Call("GET", user_path(user_id, "embedding"), typed(Embedding), params=params)


def neighbors(user_id: str, k: int | None = None) -> Call[list[Neighbor]]:
    """The users nearest in taste, nearest first."""
    read = typed(Neighbors)
    path = user_path(user_id, "neighbors")
    return Call("GET", path, lambda answer: read(answer).neighbors, params=given(k=k))


def upload_image(picture: Picture) -> Call[ImageRef]:
    """Send a picture once, to name it in several pairs. Expires if nothing uses it."""
    headers = {"Content-Type": "application/octet-stream"}
    content = encoded(picture)
    return Call("POST", "/images", typed(ImageRef), content=content, headers=headers)


def get_image(image: ImageRef | str) -> Call[bytes]:
    """The encoded bytes of a picture the server holds."""
    return Call("GET", _image(image), raw)


def delete_image(image: ImageRef | str) -> Call[None]:
    """Raises Conflict while a pair uses it."""
    return Call("DELETE", _image(image), nothing)


def generate(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    **options: Unpack[Drawings],
) -> Call[Generation]:
    """Draw to the taste of one user, several (``users={"ann": 0.5, "bob": 0.5}``) or none."""
    body = _drawing(prompt, user_id, users, options)
    return Call("POST", "/generate", typed(Generation), json=body)


def generate_png(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    **options: Unpack[Drawing],
) -> Call[bytes]:
    """Draw one picture and return its PNG bytes."""
    body = _drawing(prompt, user_id, users, options)
    return Call("POST", "/generate", raw, json=body, headers={"Accept": "image/png"})


def submit(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    idempotency_key: str | None = None,
    **options: Unpack[Drawings],
) -> Call[GenerationRecord]:
    """Have it drawn without waiting; look at it with ``generation``, or listen with ``events``.

    idempotency_key: made afresh for each call, so that a retry draws nothing twice.
    """
    return Call(
        "POST",
        "/generate",
        typed(GenerationRecord),
        json=_drawing(prompt, user_id, users, options),
        headers={"Prefer": "respond-async", "Idempotency-Key": idempotency_key or uuid4().hex},
    )


def stream(
    prompt: str,
    *,
    user_id: str | None = None,
    users: Mapping[str, float] | Sequence[UserWeight] | None = None,
    idempotency_key: str | None = None,
    **options: Unpack[Drawings],
) -> Call[httpx.Response]:
    """Draw, and hear how it goes. Who stops listening stops the drawing, unless it has a key."""
    return Call(
        "POST",
        "/generate",
        _itself,
        json={**_drawing(prompt, user_id, users, options), "stream": True},
        headers={} if idempotency_key is None else {"Idempotency-Key": idempotency_key},
        stream=True,
    )


def events(generation_id: str, last_event_id: int = 0) -> Call[httpx.Response]:
    """Hear how a drawing goes on after an event (0: from its beginning)."""
    headers = {"Last-Event-ID": str(last_event_id)}
    path = _generation(generation_id, "events")
    return Call("GET", path, _itself, headers=headers, stream=True)


def generation(generation_id: str) -> Call[GenerationRecord]:
    """How far a drawing is. Raises NotFound."""
    return Call("GET", _generation(generation_id), typed(GenerationRecord))


def cancel(generation_id: str) -> Call[GenerationRecord]:
    """Stop a drawing at its next step; one that has ended stays as it is. Raises NotFound."""
    return Call("DELETE", _generation(generation_id), typed(GenerationRecord))


def releases() -> Call[Releases]:
    """What the server draws with, its sizes, samplers and limits."""
    return Call("GET", "/releases", typed(Releases))


def healthz() -> Call[None]:
    """Returns if the server is alive, else raises; asks once."""
    return Call("GET", "/healthz", nothing, retry=False)


def readyz() -> Call[Readiness]:
    """Whether the server can draw for users now, and if not, what is missing; asks once."""
    return Call("GET", "/readyz", _readiness, retry=False, refusals=frozenset({503}))


def _generation(generation_id: str, *rest: str) -> str:
    return "/".join(["/generations", checked_id("generation_id", generation_id), *rest])


def _image(image: ImageRef | str) -> str:
    return "/images/" + checked_id("image_id", image if isinstance(image, str) else image.image_id)


def _drawing(
    prompt: str,
    user_id: str | None,
    users: Mapping[str, float] | Sequence[UserWeight] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    body = given(prompt=prompt, user_id=user_id, **options)
    if users is not None:
        if isinstance(users, Mapping):
            users = [UserWeight(user_id=name, weight=weight) for name, weight in users.items()]
        body["users"] = [user.model_dump(exclude_none=True) for user in users]
    return body


def _readiness(answer: httpx.Response) -> Readiness:
    if answer.is_success:
        return Readiness(ready=True)
    return Readiness(ready=False, detail=api_error(answer).detail)


def _itself(answer: httpx.Response) -> httpx.Response:
    return answer
