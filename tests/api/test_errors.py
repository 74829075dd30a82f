"""Every error is a problem document, names its field, and never repeats the input."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.edge import Edge
from ppd_serve.api.schemas import LIMITS
from ppd_serve.api.services import Services
from ppd_serve.errors import PPDError
from tests.api.doubles import every_error, png

GOOD = base64.b64encode(png()).decode()


def is_problem(response: httpx.Response, status: int, kind: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    document = response.json()
    assert document["type"] == f"urn:ppd:problem:{kind}"
    assert document["status"] == status
    assert document["title"] and document["detail"]
    assert document.get("field") == field


def pair(**changes: Any) -> dict[str, Any]:
    good = {"prompt": "a", "preferred": {"b64_json": GOOD}, "rejected": {"b64_json": GOOD}}
    return {"pairs": [{**good, **changes}]}


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
async def test_every_error_class_becomes_its_problem(
    http: httpx.AsyncClient, services: Services, cls: type[PPDError]
) -> None:
    services.users.error = cls("why", field="where")  # type: ignore[attr-defined]
    response = await http.get("/users/ann")
    is_problem(response, cls.status, cls.type, "where")
    assert ("retry-after" in response.headers) == (cls.status in (429, 503))


async def test_a_bug_tells_nothing_about_itself(
    http: httpx.AsyncClient, services: Services
) -> None:
    services.users.error = RuntimeError("password=1234")  # type: ignore[attr-defined]
    response = await http.get("/users/ann")
    is_problem(response, 500, "internal")
    assert "1234" not in response.text


async def test_router_errors(http: httpx.AsyncClient) -> None:
    is_problem(await http.get("/nowhere"), 404, "not-found")
    is_problem(await http.get("/users/"), 404, "not-found")
    response = await http.post("/users/ann")
    is_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
async def test_a_body_that_is_not_json(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post("/generate", content=body, headers=headers)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "pairs"),
        ({"pairs": []}, "pairs"),
        ({"pairs": pair()["pairs"] * 17}, "pairs"),
        ({**pair(), "extra": 1}, "extra"),
        (pair(mood=1), "pairs.0.mood"),
        (pair(prompt=""), "pairs.0.prompt"),
        (pair(prompt="a\0b"), "pairs.0.prompt"),
        (pair(prompt="\ud800"), "pairs.0.prompt"),
        (pair(prompt="x" * 4001), "pairs.0.prompt"),
        (pair(prompt=7), "pairs.0.prompt"),
        (pair(preferred={}), "pairs.0.preferred"),
        (pair(preferred={"image_id": "a", "b64_json": GOOD}), "pairs.0.preferred"),
        (pair(preferred={"image_id": "../etc"}), "pairs.0.preferred.image_id"),
        (pair(rejected={"b64_json": "*"}), "pairs.0.rejected.b64_json"),
        (pair(rejected={"b64_json": "é"}), "pairs.0.rejected.b64_json"),
        ({"\n": 1, **pair()}, "\ufffd"),
        ({"\ud800": 1, **pair()}, "body"),
    ],
)
async def test_preferences_name_the_field(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await http.post(
        "/users/ann/preferences",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    kind = "bad-image" if field == "pairs.0.rejected.b64_json" else "invalid-input"
    is_problem(response, 422, kind, field)
    assert GOOD not in response.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"steps": 101}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"width": 0}, "width"),
        ({"height": 10**9}, "height"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"preference_scale": float("inf")}, "preference_scale"),
        ({"preference_scale": 4.1}, "preference_scale"),
        ({"users": [{"user_id": "a", "weight": -5}]}, "users.0.weight"),
        ({"users": [{"user_id": "a"}] * 5}, "users"),
        ({"user_id": "-a"}, "user_id"),
        ({"user_id": "a\n"}, "user_id"),
        ({"user_id": "a" * 129}, "user_id"),
        ({"response_format": "gif"}, "response_format"),
        ({"negative_prompt": "\ud800"}, "negative_prompt"),
        ({"prompt": "SECRET\0"}, "prompt"),
        ({"colour": "SECRET"}, "colour"),
    ],
)
async def test_generate_names_the_field(
    http: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    response = await http.post(
        "/generate",
        content=json.dumps({"prompt": "a", **change}),
        headers={"content-type": "application/json"},
    )
    is_problem(response, 422, "invalid-input", field)
    assert "SECRET" not in response.text


async def test_one_user_or_users_but_not_both(http: httpx.AsyncClient) -> None:
    both = {"prompt": "a", "user_id": "a", "users": [{"user_id": "b"}]}
    assert (await http.post("/generate", json=both)).status_code == 422


@pytest.mark.parametrize("user_id", ["-a", "a%20b", "a%00", "%ED%A0%80", "a" * 129, "ä"])
async def test_bad_ids_in_the_path(http: httpx.AsyncClient, user_id: str) -> None:
    is_problem(await http.get(f"/users/{user_id}"), 422, "invalid-input", "user_id")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "cursor=%0A", "cursor=a/b", "cursor="]
)
async def test_bad_pages(http: httpx.AsyncClient, query: str) -> None:
    field = query.partition("=")[0]
    response = await http.get(f"/users/ann/preferences?{query}")
    is_problem(response, 422, "invalid-input", field)


async def test_idempotency_keys_are_bounded(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k" * 256}
    response = await http.post("/users/ann/preferences", json=pair(), headers=headers)
    is_problem(response, 422, "invalid-input", "Idempotency-Key")


async def test_a_body_over_the_limit_is_not_kept(
    http: httpx.AsyncClient, services: Services
) -> None:
    async def parts():  # type: ignore[no-untyped-def]
        for _ in range(LIMITS.body_bytes // 2**20 + 1):
            yield bytes(2**20)

    is_problem(await http.post("/images", content=parts()), 413, "too-large")
    declared = await http.post("/images", content=bytes(LIMITS.body_bytes + 1))
    is_problem(declared, 413, "too-large")
    assert not services.images.calls  # type: ignore[attr-defined]


async def test_what_stands_before_a_dead_process_says_so() -> None:
    """The proxy's own errors (plain text, or no answer at all) come out as problems, too."""

    async def dead(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/text":
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"No replicas"})
        if scope["path"] == "/raise":
            raise RuntimeError

    transport = httpx.ASGITransport(Edge(dead, proxy=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        for path in ("/text", "/raise", "/silent"):
            response = await http.get(path)
            is_problem(response, 503, "actor-unavailable")
            assert response.headers["retry-after"]


async def test_request_ids_are_echoed_or_made(http: httpx.AsyncClient) -> None:
    response = await http.get("/healthz", headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    made = [(await http.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    odd = await http.get("/healthz", headers={"X-Request-ID": "x" * 1000})
    assert len(odd.headers["x-request-id"]) <= 128


async def test_every_route_documents_its_errors(services: Services) -> None:
    schema = create_app(services).openapi()
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            assert {"401", "403", "422", "429", "500", "503"} <= set(route["responses"]), (
                method,
                path,
            )
            kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
            for status, answer in route["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == [kind], (method, path, status)
                    assert answer["content"][kind]["schema"]["properties"]
                elif status != "204":
                    for content in answer["content"].values():
                        assert content.get("schema") or content["itemSchema"]
            assert "$defs" not in json.dumps(route)
            assert "Retry-After" in route["responses"]["503"]["headers"]
            told = set(route["responses"]["429"]["headers"])
            assert told == {"Retry-After", "RateLimit", "RateLimit-Policy"}
