"""A request's id, on every line that the request causes, here and in the parts."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import SimpleNamespace

import httpx
import pytest

from ppd_serve import logs
from ppd_serve.actors import Diffuser
from ppd_serve.api.app import create_app
from ppd_serve.gateway.ports import DrawEvent, DrawRequest
from ppd_serve.settings import DiffuserPart
from tests.diffusion.toy import DEFAULTS, Toy
from tests.gateway.conftest import House
from tests.gateway.doubles import FakeDiffuser


class RealDiffuser(FakeDiffuser):
    """Its actor, with a real engine, called as ``Remote`` calls it."""

    def __init__(self, actor: Diffuser) -> None:
        super().__init__()
        self.actor = actor

    def draw(self, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
        return self.actor.draw(request, logs.request_id.get())


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Diffuser]:
    release = SimpleNamespace(
        name="toy",
        check=lambda: None,
        load_backbone=lambda device, dtype, **how: Toy(),
        load_adapter=lambda backbone: None,
        manifest=SimpleNamespace(embedding_shape=(1, 4)),
        defaults=DEFAULTS,
    )
    monkeypatch.setattr("ppd_serve.release.load_release", lambda path: release)
    actor = Diffuser("release", DiffuserPart(threads=1))
    yield actor
    actor._engine.stop(drain=False)


@pytest.fixture
async def http(house: House, actor: Diffuser) -> AsyncIterator[httpx.AsyncClient]:
    house.diffuser = RealDiffuser(actor)
    server = house.open()
    async with server.running:
        transport = httpx.ASGITransport(create_app(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(logs.with_request_id)
        self.setFormatter(logs.JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def of(self, request_id: str) -> dict[str, str]:
        told = [json.loads(line) for line in self.lines]
        return {
            line["logger"]: line["message"] for line in told if line["request_id"] == request_id
        }


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logging.getLogger(logs.OURS).addHandler(handler)
    yield handler
    logging.getLogger(logs.OURS).removeHandler(handler)


@pytest.mark.parametrize("prompt", ["nan", "raise", "unencodable"])
async def test_a_drawing_that_fails(http: httpx.AsyncClient, lines: Lines, prompt: str) -> None:
    for request_id in ("mine-1", "mine-2"):
        headers = {"X-Request-ID": request_id}
        answer = await http.post("/generate", json={"prompt": prompt}, headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, request_id)
    for request_id in ("mine-1", "mine-2"):
        told = lines.of(request_id)
        assert "ppd_serve.diffusion.batch" in told  # in the engine's own thread
        assert "ppd_serve.gateway.generations" in told
    assert all(json.loads(line)["request_id"] != "-" for line in lines.lines)


async def test_an_id_that_was_made_is_on_the_lines_as_well(
    http: httpx.AsyncClient, lines: Lines
) -> None:
    answer = await http.post("/generate", json={"prompt": "nan"})
    assert len(lines.of(answer.headers["x-request-id"])) == 2


async def test_a_reading_that_fails(http: httpx.AsyncClient, lines: Lines, house: House) -> None:
    from tests.e2e.conftest import pairs

    house.encoder.error = RuntimeError("broken")
    headers = {"X-Request-ID": "mine"}
    answer = await http.post("/users/ann/preferences", json=pairs(), headers=headers)
    assert answer.json()["embedding"]["status"] == "pending"
    assert "broken" in lines.of("mine")["ppd_serve.gateway.tastes"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_lines_for_people_and_for_programs(
    format: logs.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger(logs.OURS)
    before = logger.handlers
    try:
        logs.configure(format)
        logs.configure(format)  # twice is once
        logs.request_id.set("mine")
        logging.getLogger("ppd_serve.somewhere").warning("a %s\nof two", "line")
        (handler,) = logger.handlers
    finally:
        logger.handlers = before
        logs.request_id.set("")
    told = capsys.readouterr().err
    assert isinstance(handler, logging.StreamHandler)
    if format == "json":
        line = json.loads(told)
        assert line.pop("time") > 0
        assert line == {
            "level": "WARNING", "logger": "ppd_serve.somewhere", "request_id": "mine",
            "message": "a line\nof two",
        }  # fmt: skip
    else:
        assert "WARNING ppd_serve.somewhere [mine] a line" in told
