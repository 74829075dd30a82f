"""OpenAI's own client, unchanged, against our routes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.edge import Edge
from ppd_serve.api.events import Done, Drawn, Failed, Painted, Preview, Queued, Step
from ppd_serve.api.services import Services
from ppd_serve.errors import GenerationFailed, PPDError
from tests.api.doubles import every_error, memory, png


@pytest.fixture
def services() -> Services:
    return memory({"secret": "default"})


def connect(services: Services, api_key: str) -> openai.AsyncOpenAI:
    transport = httpx2.ASGITransport(create_app(services))
    return openai.AsyncOpenAI(
        api_key=api_key,
        base_url="http://server/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )


@pytest.fixture
async def client(services: Services) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connect(services, "secret") as client:
        yield client


async def test_models(client: openai.AsyncOpenAI) -> None:
    (model,) = (await client.models.list()).data
    assert await client.models.retrieve(model.id) == model
    assert (await client.images.generate(prompt="a", model=model.id)).data
    for call in (
        client.models.retrieve("dall-e-3"),
        client.images.generate(prompt="a", model="dall-e-3"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await call
        assert (caught.value.param, caught.value.code) == ("model", "not-found")


async def test_pictures(client: openai.AsyncOpenAI, services: Services) -> None:
    answer = await client.images.generate(
        prompt="a", n=2, size="128x128", quality="high", style="vivid", background="auto",
        moderation="low", response_format="b64_json",
    )  # fmt: skip
    assert answer.data is not None and answer.created == 1
    assert [image.b64_json for image in answer.data] == [base64.b64encode(png()).decode()] * 2
    assert (answer.size, answer.output_format) == ("128x128", "png")
    _, asked = services.generations.calls[-1]  # type: ignore[attr-defined]
    assert (asked.n, asked.width, asked.height) == (2, 128, 128)
    linked = await client.images.generate(prompt="a", size="auto", response_format="url")
    assert linked.data is not None and linked.data[0].url is not None
    assert "signature=" in linked.data[0].url and linked.data[0].b64_json is None
    webp = await client.images.generate(prompt="a", output_format="webp", output_compression=50)
    assert webp.data is not None and webp.output_format == "webp"
    assert base64.b64decode(webp.data[0].b64_json or "") == b"webp: " + png()


async def test_users(client: openai.AsyncOpenAI, services: Services) -> None:
    await services.users.put("default", "ann")
    for user, known in {"ann": "ann", "bob": None, "who knows \0": None}.items():
        raw = await client.images.with_raw_response.generate(prompt="a", user=user)
        _, asked = services.generations.calls[-1]  # type: ignore[attr-defined]
        assert asked.user_id == known
        assert raw.headers["x-ppd-personalized"] == "false"  # this memory reads no pairs
    await client.images.generate(prompt="a", user="bob", extra_body={"user_id": "eve"})
    _, asked = services.generations.calls[-1]  # type: ignore[attr-defined]
    assert asked.user_id == "eve"  # whether there is such a user, the drawing will tell


async def test_streaming(client: openai.AsyncOpenAI, services: Services) -> None:
    painted = Painted(0, "g0", 7, png())
    services.generations.log = [  # type: ignore[attr-defined]
        Queued(0), Preview(0, b"one"), Step(0, 1, 2), Preview(0, b"two"), painted,
        Done(Drawn("gen1", 1, "studio", [painted], [], {})),
    ]  # fmt: skip
    stream = await client.images.generate(
        prompt="a", stream=True, partial_images=2, output_format="jpeg"
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 2, "image_generation.completed",
    ]  # fmt: skip
    assert [base64.b64decode(event.b64_json) for event in events] == [
        b"jpeg: one", b"jpeg: two", b"jpeg: " + png(),
    ]  # fmt: skip
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, None]
    assert events[-1].size == "128x128" and events[-1].output_format == "jpeg"

    services.generations.log = [Queued(0), Failed(GenerationFailed("why"))]  # type: ignore[attr-defined]
    stream = await client.images.generate(prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="why"):
        _ = [event async for event in stream]


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
async def test_every_error_is_the_error_object(
    client: openai.AsyncOpenAI, services: Services, cls: type[PPDError]
) -> None:
    services.generations.error = cls("why", field="where")  # type: ignore[attr-defined]
    with pytest.raises(openai.APIStatusError) as caught:
        await client.images.generate(prompt="a")
    error = caught.value
    assert error.status_code == cls.status
    code = "rate_limit_exceeded" if cls.status == 429 else cls.type  # as OpenAI calls it
    assert (error.code, error.param) == (code, "where")
    assert error.body["message"] == "why"  # type: ignore[index]
    assert ("retry-after" in error.response.headers) == (cls.status in (429, 503))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "127x127"}, "size"),
        ({"partial_images": 4}, "partial_images"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"extra_body": {"colour": "SECRET"}}, "colour"),
    ],
)
async def test_what_is_refused(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await client.images.generate(prompt="a", **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert "SECRET" not in caught.value.response.text


async def test_a_wrong_key(services: Services) -> None:
    async with connect(services, "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_every_status_has_the_error_object_there_and_nowhere_else(
    services: Services,
) -> None:
    services.generations.error = RuntimeError("secret")  # type: ignore[attr-defined]
    transport = httpx.ASGITransport(create_app(services))
    bearer = {"Authorization": "Bearer secret"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://server", headers=bearer
    ) as http:
        raw = {"content": b"{", "headers": {"content-type": "application/json"}}
        for response, status in [
            (await http.get("/v1/nowhere"), 404),
            (await http.get("/v1/images/generations"), 405),
            (await http.post("/v1/images/generations", **raw), 400),  # type: ignore[arg-type]
            (await http.post("/v1/images/generations", json={"prompt": "a"}), 500),
            (await http.post("/v1/images/generations", content=bytes(64 * 2**20 + 1)), 413),
        ]:
            assert response.status_code == status
            assert response.json()["error"]["message"] and "secret" not in response.text
            assert response.headers["x-request-id"]
        assert "error" not in (await http.get("/nowhere")).json()


async def test_a_dead_process_is_the_error_object_too() -> None:
    async def dead(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"No replicas"})

    transport = httpx.ASGITransport(Edge(dead, proxy=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        response = await http.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "actor-unavailable")
    assert response.headers["retry-after"]
