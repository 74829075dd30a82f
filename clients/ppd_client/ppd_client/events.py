"""What is heard of a drawing while it goes on, typed, and how it is read from the stream."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import Field, ValidationError

from .errors import ConnectionFailed, UnexpectedAnswer, problem_error
from .models import Answer, GeneratedImage, Generation


class Queued(Answer):
    """The server has it; so many pictures are to be taken first, 0: it is being drawn.

    Every event has an ``event_id``, from which ``events`` goes on after a broken connection.
    """

    event_id: int
    position: int


class Step(Answer):
    """``step`` of ``steps`` of picture number ``image`` is done."""

    event_id: int
    image: int
    step: int
    steps: int


class Preview(Answer):
    """How picture number ``image`` looks so far, small."""

    event_id: int
    image: int
    b64_json: str = Field(repr=False)

    @property
    def data(self) -> bytes:
        """PNG bytes."""
        return base64.b64decode(self.b64_json)


class Painted(GeneratedImage):
    """Picture number ``image`` is finished."""

    event_id: int
    image: int


class Done(Answer):
    """What ``generate`` would have returned. Nothing follows."""

    event_id: int
    generation: Generation


Event = Queued | Step | Preview | Painted | Done
_KINDS: dict[str, type[Queued | Step | Preview | Painted]] = {
    "queued": Queued,
    "step": Step,
    "preview": Preview,
    "image": Painted,
}


class EventReader:
    """The text of a stream in, its events out; an ``error`` event is raised as the error it is.
    Kinds it does not know are passed over: the interface may grow."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._rest: list[str] = []  # of a line: a picture's comes in hundreds of pieces
        self._fields: dict[str, str] = {}
        self._heard = self._over = False

    def feed(self, text: str) -> Iterator[Event]:
        *ends, rest = text.split("\n")
        lines = []
        for end in ends:
            lines.append("".join([*self._rest, end]))
            self._rest = []
        self._rest.append(rest)
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                self._fields[name] = value.removeprefix(" ")
            elif "event" in self._fields:
                self._heard = True
                event = self._event()
                if event is not None:
                    yield event
            if not line:
                self._fields = {}

    def end(self) -> None:
        """Raises ConnectionFailed if the stream broke off."""
        if self._heard and not self._over:
            raise ConnectionFailed("the stream of events ended before the drawing did")

    def _event(self) -> Event | None:
        name = self._fields["event"]
        try:
            data: dict[str, Any] = json.loads(self._fields["data"])
            if name == "error":
                self._over = True
                raise problem_error(data, data["status"], self._response)
            if name == "done":
                self._over = True
                generation = Generation.model_validate(data)
                return Done(event_id=int(self._fields["id"]), generation=generation)
            if name not in _KINDS:
                return None
            return _KINDS[name].model_validate({**data, "event_id": int(self._fields["id"])})
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise UnexpectedAnswer(f"not a {name} event: {error}") from error
