"""``GET /metrics`` over a whole gateway: that Prometheus can read it, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ppd_serve import meters
from ppd_serve.api.app import create_app
from ppd_serve.api.services import Services
from ppd_serve.diffusion.stats import Stats
from ppd_serve.errors import QueueFull
from ppd_serve.meters import PARTS, Beat, Cache, Gauge, Meters, Summary
from tests.api.doubles import memory
from tests.gateway.conftest import House, choices

P = "default"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
async def http(server: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(server))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def scrape(http: httpx.AsyncClient) -> Samples:
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return read(answer.text)


async def test_drawings_and_their_parts(
    http: httpx.AsyncClient, server: Services, house: House
) -> None:
    await server.preferences.add(P, "ann", choices("a"), None)
    for body in ({}, {"user_id": "ann"}, {"stream": True, "steps": 3}):
        answer = await http.post("/generate", json={"prompt": "a boat", **body})
        assert answer.status_code == 200
    house.diffuser.error = QueueFull()
    assert (await http.post("/generate", json={"prompt": "a boat"})).status_code == 503
    assert (await http.post("/users/ann/questions")).status_code == 503
    house.diffuser.error = None
    assert (await http.post("/users/ann/questions")).status_code == 201
    async with asyncio.timeout(20):
        while await server.status.missing():
            await asyncio.sleep(0.01)
    told = await scrape(http)
    seconds = "ppd_generation_seconds"
    assert value(told, f"{seconds}_count", state="done") == 4
    assert value(told, f"{seconds}_count", state="refused") == 2
    assert value(told, f"{seconds}_sum", state="done") > 0
    assert value(told, "ppd_first_preview_seconds_count") == 1
    assert value(told, "ppd_encode_seconds_count") == 1
    assert value(told, "ppd_index_lookups_total", result="hit") == 1
    assert value(told, "ppd_engine_queue_length", replica="diffuser") == 3
    assert value(told, "ppd_engine_step_rows_sum", replica="diffuser") == 9
    assert value(told, "ppd_engine_step_seconds_count", replica="diffuser") == 2
    assert value(told, "ppd_chunk_cache_total", replica="encoder", result="hit") == 2
    async with asyncio.timeout(20):
        while value(await scrape(http), "ppd_index_users", replica="index") != 1:
            await asyncio.sleep(0.01)


async def test_requests_by_route_and_no_names(http: httpx.AsyncClient) -> None:
    for path in ("/users/ann", "/users/bob", "/users/ann/embedding", "/nowhere", "/nobody"):
        assert (await http.get(path)).status_code == 404
    await http.put("/users/ann")
    await http.request("BREW", "/users/ann")
    assert (await http.delete("/generate")).status_code == 405
    text = (await http.get("/metrics")).text
    told, name = read(text), "ppd_http_request_seconds_count"

    def count(method: str, route: str, status: int) -> float:
        return value(told, name, method=method, route=route, status=str(status))

    assert count("GET", "/users/{user_id}", 404) == 2
    assert count("GET", "/users/{user_id}/embedding", 404) == 1
    assert count("GET", "none", 404) == 2
    assert count("PUT", "/users/{user_id}", 201) == 1
    assert (
        sum(v for (n, labels), v in told.items() if n == name and ("status", "405") in labels) == 2
    )
    for secret in ("ann", "bob", "nowhere", "BREW"):
        assert secret not in text


async def test_who_may_look() -> None:
    app = create_app(memory({"a-key-of-theirs-1": "theirs"}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        assert (await http.get("/metrics")).status_code == 401
        key = {"Authorization": "Bearer a-key-of-theirs-1"}
        assert (await http.get("/metrics", headers=key)).status_code == 200


def test_replicas_are_told_apart_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Meters()
    ours.heard(Beat("a", {"queued": 1}))
    ours.heard(Beat("b", {"queued": 2}))
    ours.heard(Beat("a", {"queued": 5}))

    def told() -> Samples:
        return {
            key: value
            for key, value in read(generate_latest(ours.registry).decode()).items()
            if key[0] == "ppd_engine_queue_length"
        }

    assert sorted(told().values()) == [2, 5]
    monkeypatch.setattr(meters, "FORGET_SECONDS", -1.0)
    assert told() == {}


def test_every_figure_of_the_engine_and_no_other() -> None:
    wanted: set[str] = set()
    for kind in PARTS:
        match kind:
            case Gauge(_, _, figure):
                wanted.add(figure)
            case Summary(_, _, count, total):
                wanted |= {count, total}
            case Cache(_, _, hits, misses):
                wanted |= {hits, misses}
    others = {"chunk_hits", "chunk_misses", "users"}  # tests/test_actors.py
    assert wanted - others <= {field.name for field in fields(Stats)}
