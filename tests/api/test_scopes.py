"""What a key may do: its project's, of its scopes, as long as it lives."""

from __future__ import annotations

import time

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.services import Services
from ppd_serve.keys import ApiKey, Scope, digest
from tests.api.doubles import memory
from tests.api.test_errors import is_problem
from tests.api.walk import COMMON, OPEN, routes

ROUTES = routes(create_app(memory()))
DRAWING = {
    "/generate", "/v1/images/generations", "/generations/{generation_id}",
    "/generations/{generation_id}/events", "/users/{user_id}/questions",
}  # fmt: skip


@pytest.fixture
def services() -> Services:
    services = memory({"from-the-environment": "alpha"})
    for scope in Scope:
        services.keys.stored[digest(scope)] = ApiKey(  # type: ignore[attr-defined]
            f"id-{scope}", "alpha", frozenset({scope})
        )
    return services


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def opened_by(method: str, path: str) -> set[str]:
    if path == "/metrics":
        return {"metrics"}
    if path in DRAWING:
        return {"generate", "read"} if method == "GET" else {"generate"}
    return {"read"} if method == "GET" else {"write"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_asks_for_its_scope(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    place = path.replace("{", "").replace("}", "")
    needed = opened_by(method, path)
    for scope in Scope:
        response = await http.request(method, place, headers=bearer(scope), json={})
        if scope in needed:
            assert response.status_code not in (401, 403), response.text
        elif path.startswith("/v1/"):
            assert response.status_code == 403
            assert response.json()["error"]["type"] == "permission_error"
        else:
            is_problem(response, 403, "forbidden")
            assert response.json()["detail"].endswith(" or ".join(sorted(needed)))
    assert (await http.request(method, place, json={})).status_code == 401
    full = await http.request(method, place, headers=bearer("from-the-environment"), json={})
    assert full.status_code not in (401, 403)


async def test_what_is_nobodys_takes_any_key(http: httpx.AsyncClient) -> None:
    for path in COMMON:
        path = path.replace("{model}", "studio")
        assert (await http.get(path)).status_code == 401
        for scope in Scope:
            assert (await http.get(path, headers=bearer(scope))).status_code == 200
    for path in OPEN:
        assert (await http.get(path)).status_code == 200


async def test_a_key_of_the_store_opens_its_project(
    http: httpx.AsyncClient, services: Services
) -> None:
    stored = services.keys.stored  # type: ignore[attr-defined]
    stored[digest("other")] = ApiKey("o", "beta")
    assert (await http.put("/users/ann", headers=bearer("from-the-environment"))).status_code == 201
    assert (await http.get("/users/ann", headers=bearer("read"))).status_code == 200
    assert (await http.get("/users/ann", headers=bearer("other"))).status_code == 404


@pytest.mark.parametrize("end", [{"revoked": 1.0}, {"expires": 1.0}])
async def test_a_dead_key_opens_nothing_and_is_still_a_key(end: dict[str, float]) -> None:
    services = memory()
    stored = services.keys.stored  # type: ignore[attr-defined]
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        assert (await http.put("/users/ann")).status_code == 201  # there has never been a key
        stored[digest("k")] = ApiKey("k", "default", expires=time.time() + 3600)
        assert (await http.get("/users/ann", headers=bearer("k"))).status_code == 200
        stored[digest("k")] = ApiKey("k", "default", **end)  # type: ignore[arg-type]
        assert (await http.get("/users/ann", headers=bearer("k"))).status_code == 401
        assert (await http.get("/users/ann")).status_code == 401


async def test_the_schema_names_the_way_in(services: Services) -> None:
    schema = create_app(services).openapi()
    (scheme,) = schema["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert schema["paths"]["/generate"]["post"]["security"]
    assert "security" not in schema["paths"]["/healthz"]["get"]
