"""What each route answers when all is well, and who may ask."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest

from ppd_serve.api import auth
from ppd_serve.api.app import create_app
from ppd_serve.api.services import Services
from ppd_serve.keys import ApiKey, digest
from tests.api.doubles import NOTHING, memory, png


async def test_users(http: httpx.AsyncClient) -> None:
    assert (await http.get("/users/ann")).status_code == 404
    assert (await http.put("/users/ann")).status_code == 201
    assert (await http.put("/users/ann")).status_code == 200
    assert (await http.get("/users/ann")).json() == {
        "user_id": "ann",
        "pairs_total": 0,
        "embedding": None,
        "profile": None,
        "ask_more": True,
    }
    assert (await http.get("/users/ann/embedding")).json()["values"] == [[0.5, -0.5]]
    for _ in range(2):
        assert (await http.delete("/users/ann")).status_code == 204


async def test_preferences(http: httpx.AsyncClient, services: Services) -> None:
    picture = {"b64_json": base64.b64encode(png()).decode()}
    body = {"pairs": [{"prompt": "a", "preferred": picture, "rejected": {"image_id": "i1"}}]}
    response = await http.post("/users/ann/preferences", json=body)
    assert response.status_code == 201
    assert response.json()["pair_ids"] == ["p0"]
    keyed = [
        await http.post("/users/ann/preferences", json=body, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert [response.status_code for response in keyed] == [201, 201]
    calls = services.preferences.calls  # type: ignore[attr-defined]
    assert calls[0] == ("add", None)
    assert calls[1] == calls[2]  # the same key, route and body
    assert (await http.get("/users/ann/preferences")).json() == {"pairs": [], "next": None}
    assert (await http.delete("/users/ann/preferences/p0")).status_code == 204


async def test_questions(http: httpx.AsyncClient, services: Services) -> None:
    asked = await http.post("/users/ann/questions", json={"prompt": "a boat"})
    assert asked.status_code == 201
    answer = asked.json()
    assert (answer["question_id"], answer["prompt"]) == ("q0", "a boat")
    for side, image_id in (("left", "i0"), ("right", "i1")):
        services.images.pictures["default", image_id] = png()  # type: ignore[attr-defined]
        assert answer[side]["image_id"] == image_id
        assert (await http.get(answer[side]["url"])).content == png()
    for body in (b"", b"{}"):  # it needs none
        headers = {"Idempotency-Key": "k", "content-type": "application/json"}
        response = await http.post("/users/ann/questions", content=body, headers=headers)
        assert response.status_code == 201
    calls = services.questions.calls  # type: ignore[attr-defined]
    assert calls[0] == ("ask", "a boat", None) and calls[1][2].key == "k"
    response = await http.put("/users/ann/questions/q0/answer", json={"choice": "left"})
    assert (response.status_code, response.json()["pair_ids"]) == (200, ["p0"])
    bad = await http.put("/users/ann/questions/q0/answer", json={"choice": "both"})
    assert (bad.status_code, bad.json()["field"]) == (422, "choice")


async def test_feedback(http: httpx.AsyncClient) -> None:
    said = {"image_id": "i0", "liked": False}
    response = await http.post("/users/ann/feedback", json=said)
    assert (response.status_code, response.json()) == (201, {"feedback_id": "f0", **said})
    assert (await http.delete("/users/ann/feedback/f0")).status_code == 204
    bad = await http.post("/users/ann/feedback", json={**said, "liked": "yes"})
    assert (bad.status_code, bad.json()["field"]) == (422, "liked")


async def test_taste_codes(http: httpx.AsyncClient) -> None:
    response = await http.post("/users/ann/taste-codes", json={"version": 3})
    assert (response.status_code, response.json()["version"]) == (201, 3)
    assert (await http.post("/users/ann/taste-codes")).status_code == 201
    assert len((await http.get("/users/ann/taste-codes")).json()["taste_codes"]) == 1
    assert (await http.delete("/users/ann/taste-codes/taste_0")).status_code == 204
    for user in ({}, {"user_id": "a", "taste_code": "t"}, {"taste_code": "t", "version": 1}):
        bad = await http.post("/generate", json={"prompt": "a", "users": [user]})
        assert (bad.status_code, bad.json()["field"]) == (422, "users.0")


async def test_export(http: httpx.AsyncClient, services: Services) -> None:
    response = await http.get("/users/ann/export")
    assert (response.status_code, response.content) == (200, NOTHING)
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"].startswith("attachment")
    assert services.exports.calls == [("archive", "default", "ann")]  # type: ignore[attr-defined]
    missing = await http.get("/users/nobody/export")
    assert (missing.status_code, missing.headers["content-type"]) == (
        404,
        "application/problem+json",
    )


async def test_embedding_versions(http: httpx.AsyncClient, services: Services) -> None:
    await http.put("/users/ann")
    assert (await http.get("/users/ann/embedding?version=2")).status_code == 200
    calls = services.users.calls  # type: ignore[attr-defined]
    assert calls[-1] == ("embedding", 2)
    assert (await http.get("/users/ann/embedding?version=-1")).status_code == 422
    page = (await http.get("/users/ann/embeddings?limit=5")).json()
    assert page == {"embeddings": [{"version": 1, "pairs_used": 1}], "next": None}
    assert calls[-1] == ("embeddings", None, 5)


async def test_images(http: httpx.AsyncClient) -> None:
    response = await http.post("/images", content=png())
    assert response.status_code == 201
    image = await http.get("/images/" + response.json()["image_id"])
    assert (image.content, image.headers["content-type"]) == (png(), "image/png")
    assert (await http.post("/images", content=b"text")).json()["field"] == "body"


async def test_generate(http: httpx.AsyncClient, services: Services) -> None:
    response = await http.post("/generate", json={"prompt": "a", "n": 2, "seed": 7})
    answer = response.json()
    assert response.headers["generation-id"] == answer["id"]
    assert [image["seed"] for image in answer["images"]] == [7, 8]
    assert base64.b64decode(answer["images"][0]["b64_json"]) == png()
    bare = await http.post("/generate", json={"prompt": "a"}, headers={"Accept": "image/png"})
    assert (bare.content, bare.headers["content-type"]) == (png(), "image/png")
    assert bare.headers["generation-id"]
    two = await http.post(
        "/generate", json={"prompt": "a", "n": 2}, headers={"Accept": "image/png"}
    )
    assert (two.status_code, two.json()["field"]) == (422, "n")


async def test_health_and_docs(http: httpx.AsyncClient, services: Services) -> None:
    assert (await http.get("/readyz")).status_code == 200
    services.status.parts = {"encoder": "not warm yet"}  # type: ignore[attr-defined]
    response = await http.get("/readyz")
    assert response.status_code == 503
    assert "encoder" in response.json()["detail"]
    assert (await http.get("/healthz")).status_code == 200
    page = (await http.get("/docs")).text
    assert "/generate" in page and "//" not in page.replace("https://", "").replace("http://", "")
    assert (await http.get("/releases")).json()["active"]["limits"]["pairs"] == 16


@pytest.fixture
async def keyed() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(memory({"key-a": "alpha", "key-b": "beta"}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_keys_belong_to_projects(keyed: httpx.AsyncClient) -> None:
    assert (await keyed.put("/users/ann", headers=bearer("key-a"))).status_code == 201
    assert (await keyed.get("/users/ann", headers=bearer("key-a"))).status_code == 200
    assert (await keyed.get("/users/ann", headers=bearer("key-b"))).status_code == 404
    for headers in ({}, bearer("key-c"), bearer(""), {"Authorization": "Basic key-a"}):
        response = await keyed.get("/users/ann", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert (await keyed.get(path)).status_code == 200


async def test_links_open_one_picture_for_an_hour(
    keyed: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await keyed.post("/images", content=png(), headers=bearer("key-a"))
    assert upload.json() == {"image_id": "i0"}
    link = auth.Access(b"secret", {"key-a": "alpha"}).link("http://server/", "alpha", "i0")
    assert urlsplit(link).netloc == "server"
    assert (await keyed.get(link)).content == png()
    for spoiled in (
        link.replace("i0", "i1"),
        link.replace("alpha", "beta"),
        link.replace("expires=1", "expires=2"),
        link[:-1] + "0" if link[-1] != "0" else link[:-1] + "1",
        link.partition("&expires")[0] + "&signature=" + "0" * 64,
    ):
        assert (await keyed.get(spoiled)).status_code == 403
    assert (await keyed.get("/images/i0")).status_code == 401
    now = auth.time.time()
    monkeypatch.setattr(auth.time, "time", lambda: now + 3601)
    assert (await keyed.get(link)).status_code == 403


async def test_without_keys_only_loopback_is_served() -> None:
    services = memory()
    open_access = auth.Access(b"secret", loopback_only=True)
    transport = httpx.ASGITransport(create_app(dataclasses.replace(services, access=open_access)))
    async with httpx.AsyncClient(transport=transport) as http:
        for host, status in {"127.0.0.1": 201, "10.0.0.7": 403, "[::1]": 201}.items():
            assert (await http.put(f"http://{host}/users/u{len(host)}")).status_code == status
            assert (await http.get(f"http://{host}/healthz")).status_code == 200
        services.keys.stored[digest("key-a")] = ApiKey("a", "default")  # type: ignore[attr-defined]
        for host in ("127.0.0.1", "10.0.0.7"):
            assert (await http.put(f"http://{host}/users/ann")).status_code == 401
            with_key = await http.put(f"http://{host}/users/ann", headers=bearer("key-a"))
            assert with_key.status_code in (200, 201)
