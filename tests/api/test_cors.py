"""What a web page of another origin may do."""

from __future__ import annotations

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.schemas import LIMITS
from ppd_serve.api.services import Services
from tests.api.test_errors import is_problem

PAGE, OTHER = "https://app.example", "https://evil.example"


def connect(services: Services, *origins: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(services, origins))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def preflight(origin: str, method: str = "POST", sent: str = "content-type") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": sent,
    }


async def test_a_page_that_is_named(services: Services) -> None:
    async with connect(services, PAGE) as http:
        sent = "authorization, content-type, idempotency-key, last-event-id, prefer"
        asked = await http.options("/generate", headers=preflight(PAGE, "DELETE", sent))
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        answer = await http.post("/generate", json={"prompt": "a"}, headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"]
        assert {"Generation-Id", "X-Request-ID"} <= set(exposed.split(", "))
        assert answer.headers["x-request-id"] and answer.headers["generation-id"]
        assert "access-control-allow-credentials" not in answer.headers


async def test_errors_can_be_read_whoever_makes_them(services: Services) -> None:
    services.generations.error = RuntimeError()  # type: ignore[attr-defined]
    async with connect(services, PAGE) as http:
        origin = {"Origin": PAGE}
        for response, status, kind in [
            (await http.get("/nowhere", headers=origin), 404, "not-found"),
            (await http.post("/generate", json={"prompt": "a"}, headers=origin), 500, "internal"),
            (
                await http.post("/images", content=bytes(LIMITS.body_bytes + 1), headers=origin),
                413,
                "too-large",
            ),
        ]:
            is_problem(response, status, kind)
            assert response.headers["access-control-allow-origin"] == PAGE


async def test_any_other_page(services: Services) -> None:
    async with connect(services, PAGE) as http:
        for headers in (preflight(OTHER), preflight(PAGE, "PATCH"), preflight(PAGE, sent="x-odd")):
            refused = await http.options("/generate", headers=headers)
            assert refused.status_code == 403
            assert refused.json()["type"] == "urn:ppd:problem:forbidden"
        assert (
            "access-control-allow-origin"
            not in (await http.get("/healthz", headers={"Origin": OTHER})).headers
        )


@pytest.mark.parametrize(("origins", "allowed"), [((), None), (("*",), "*")])
async def test_nobody_or_everybody(
    services: Services, origins: tuple[str, ...], allowed: str | None
) -> None:
    async with connect(services, *origins) as http:
        answer = await http.get("/healthz", headers={"Origin": OTHER})
        assert answer.headers.get("access-control-allow-origin") == allowed
