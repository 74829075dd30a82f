"""The client and the API speak the same language: every call, against the real routes and schemas.

What stands behind the routes is in memory; tests/e2e has the whole server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import ppd_client
from ppd_client import AsyncClient, ImageRef, UserWeight
from ppd_serve.api import generation_schemas, schemas
from ppd_serve.api.app import create_app
from ppd_serve.api.events import Done, Drawn, Failed, Painted, Preview, Queued, Step
from ppd_serve.api.services import Services
from ppd_serve.errors import GenerationFailed, PPDError
from tests.api.doubles import NOTHING, every_error, memory, png


@pytest.fixture
def services() -> Services:
    return memory({"secret": "default"})


@pytest.fixture
async def client(services: Services) -> AsyncIterator[AsyncClient]:
    async with connect(services, "secret") as client:
        yield client


def connect(services: Services, api_key: str | None) -> AsyncClient:
    transport = httpx.ASGITransport(create_app(services))
    return AsyncClient("http://server", api_key=api_key, retries=0, transport=transport)


async def test_users(client: AsyncClient):
    await client.put_user("ann")
    user = await client.get_user("ann")
    assert (user.user_id, user.pairs_total, user.embedding) == ("ann", 0, None)
    embedding = await client.embedding("ann")
    assert (embedding.shape, embedding.values) == ((1, 2), [[0.5, -0.5]])
    assert await client.neighbors("ann", k=3) == []
    await client.delete_user("ann")
    with pytest.raises(ppd_client.NotFound):
        await client.get_user("ann")


async def test_export(client: AsyncClient, tmp_path: Path):
    await client.export_user("ann", tmp_path / "ann.zip")
    assert (tmp_path / "ann.zip").read_bytes() == NOTHING
    with pytest.raises(ppd_client.NotFound):
        await client.export_user("nobody", tmp_path / "nobody.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["ann.zip"]


async def test_preferences(client: AsyncClient):
    added = await client.add_preferences(
        "ann", [("fish", png(), png(colour="blue")), ("tree", ImageRef(image_id="i0"), png())]
    )
    assert added.pair_ids == ["p0", "p1"] and added.embedding.status == "current"
    assert [pair async for pair in client.preferences("ann", page_size=2)] == []
    await client.delete_preference("ann", "p0")


async def test_questions_and_feedback(client: AsyncClient, services: Services):
    question = await client.ask("ann", "a fish", idempotency_key="mine")
    assert question.prompt == "a fish" and "/images/i0?" in question.left.url
    for choice, pairs in (("right", 1), ("neither", 0)):
        assert (await client.answer("ann", question, choice)).pairs_total == pairs
    assert ("answer", "q0", "right") in services.questions.calls
    asked = await client.ask("ann")
    assert services.questions.calls[-1][1] is None and asked.right.image_id == "i1"
    said = await client.give_feedback("ann", question.left, True)
    assert (said.image_id, said.liked) == ("i0", True)
    await client.delete_feedback("ann", said)
    assert services.feedback.calls[-1] == ("delete", "f0")


async def test_versions_and_taste_codes(client: AsyncClient, services: Services):
    await client.put_user("ann")
    await client.embedding("ann", 1)
    assert services.users.calls[-1] == ("embedding", 1)
    page = await client.embeddings_page("ann", "7", 2)
    assert page.embeddings[0].version == 1 and services.users.calls[-1] == ("embeddings", "7", 2)
    assert (await client.add_taste_code("ann")).version == 1
    code = await client.add_taste_code("ann", 3)
    assert code.version == 3 and [c.code for c in await client.taste_codes("ann")] == [code.code]
    await client.generate("fish", users=[UserWeight(taste_code=code.code, weight=-1.0)])
    ((_, body),) = services.generations.calls
    assert (body.wanted[0].taste_code, body.wanted[0].weight) == (code.code, -1.0)
    await client.delete_taste_code("ann", code)
    assert services.taste_codes.calls[-1] == ("delete", "taste_0")


async def test_images(client: AsyncClient):
    held = await client.upload_image(png())
    assert await client.get_image(held) == png()
    await client.delete_image(held)


async def test_generate(client: AsyncClient):
    blend = [UserWeight(user_id="ann", weight=0.5, version=1), UserWeight(user_id="bob")]
    every = {
        "negative_prompt": "blur",
        "width": 128,
        "height": 128,
        "steps": 4,
        "guidance_scale": 3.0,
        "guidance_interval": (0.25, 1.0),
        "preference_scale": 0.5,
        "seed": 7,
        "sampler": "ddim",
    }
    drawn = await client.generate("fish", users=blend, n=2, response_format="b64_json", **every)
    assert [image.seed for image in drawn.images] == [7, 8]
    assert drawn.images[0].data == png()
    assert await client.generate_png("fish", user_id="ann", **every) == png()
    linked = await client.generate("fish", response_format="url")
    assert linked.images[0].url is not None


async def test_listening(client: AsyncClient, services: Services):
    painted = Painted(0, "g0", 7, png())
    drawn = Drawn("gen1", 1, "studio", [painted], [], {"total": 0.1})
    services.generations.log = [
        Queued(3), Step(0, 1, 2), Preview(0, png()), painted, Done(drawn),
    ]  # fmt: skip
    async with client.stream("fish", seed=7) as drawing:
        assert drawing.id == "gen1"
        heard = [event async for event in drawing]
    assert [event.event_id for event in heard] == [1, 2, 3, 4, 5]
    queued, step, preview, image, done = heard
    assert queued.position == 3 and (step.image, step.step, step.steps) == (0, 1, 2)
    assert preview.data == image.data == png() and image.seed == 7
    assert done.generation == await client.generate("fish", seed=7)
    again = [event async for event in client.events("gen1", last_event_id=4)]
    assert ("events", 4) in services.generations.calls and again
    services.generations.log = [Queued(0), Failed(GenerationFailed("why"))]
    with pytest.raises(ppd_client.ServerError, match="why"):
        _ = [event async for event in client.stream("fish")]


async def test_later(client: AsyncClient):
    assert (await client.submit("fish")).status == "queued"
    for call in (client.generation, client.cancel):
        record = await call("gen1")
        assert record.ended and record.error is not None and record.images[0].url
        assert record.error.type.endswith(":generation-failed")
        with pytest.raises(ppd_client.NotFound):
            await call("gen2")


def test_every_option_of_the_interface_can_be_given():
    offered = {"prompt", "user_id", "users", *ppd_client.Drawings.__annotations__}
    offered |= ppd_client.Drawing.__annotations__.keys() | {"stream"}  # the client's own method
    assert offered == generation_schemas.GenerateIn.model_fields.keys()


async def test_releases_and_health(client: AsyncClient, services: Services):
    releases = await client.releases()
    assert releases.active.name == "studio" and releases.active.sizes == [(128, 128)]
    assert releases.active.limits["n"] == schemas.LIMITS.n
    await client.healthz()
    assert (await client.readyz()).ready
    services.status.parts = {"encoder": "loading"}
    assert await client.readyz() == ppd_client.Readiness(ready=False, detail="encoder: loading")


async def test_without_a_key(services: Services):
    async with connect(services, None) as stranger:
        with pytest.raises(ppd_client.Unauthorized):
            await stranger.get_user("ann")


@pytest.mark.parametrize("error", every_error(), ids=lambda cls: cls.__name__)
async def test_every_error_of_the_server_arrives(
    client: AsyncClient, services: Services, error: type[PPDError]
):
    services.users.error = error("because", field="user_id")
    with pytest.raises(ppd_client.APIError) as caught:
        await client.get_user("ann")
    arrived = caught.value
    assert (arrived.status, arrived.type) == (error.status, error.type)
    if error.status == 503:
        assert isinstance(arrived, ppd_client.Unavailable) and arrived.retry_after == 1
    assert arrived.request_id
