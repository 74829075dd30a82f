"""A request to the server and the reading of its answer, without sending anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from .errors import UnexpectedAnswer

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
    stream: bool = False  # the answer is read as it comes


# From DESIGN: a letter or digit first, so that no id can be a path of its own ("", "..", "a/b").
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")


def checked_id(name: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(f"{name}: up to 128 letters, digits or . _ - @ :, a letter or digit first")
    return value


def user_path(user_id: str, *rest: str) -> str:
    return "/".join(["/users", checked_id("user_id", user_id), *rest])


def given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def nothing(answer: httpx.Response) -> None:
    return None


def raw(answer: httpx.Response) -> bytes:
    return answer.content


def typed(model: type[M]) -> Callable[[httpx.Response], M]:
    def read(answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            where = f"{answer.request.method} {answer.request.url.path}"
            raise UnexpectedAnswer(f"{where}: not a {model.__name__}: {error}") from error

    return read
