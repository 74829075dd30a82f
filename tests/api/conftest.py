from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from ppd_serve.api.app import create_app
from ppd_serve.api.services import Services
from tests.api.doubles import memory


@pytest.fixture
def services() -> Services:
    return memory()


@pytest.fixture
async def http(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
