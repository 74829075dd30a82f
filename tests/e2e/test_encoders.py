"""Encoders in miniature through the real server: whose choices, so whose pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import png
from tests.e2e.server import Server
from tests.twins.day_one import make_day_one
from tests.twins.encoders import make_fitted_vlm
from tests.twins.releases import TWINS

pytestmark = pytest.mark.e2e

SEEN = 2  # of 255
RELEASES: dict[str, Callable[[Path], object]] = {
    "qwen3_vl": partial(TWINS["sdxl"], make_encoder=partial(make_fitted_vlm, "qwen3_vl")),
    "llava_onevision": partial(
        TWINS["sd15"], make_encoder=partial(make_fitted_vlm, "llava_onevision")
    ),
    "day_one": make_day_one,
}


@pytest.fixture(scope="module", params=RELEASES)
def http(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp(request.param)
    RELEASES[request.param](path / "release")
    server = Server(path / "release", path).start()
    with server.client() as client:
        yield client
    assert server.stop() == 0, "\n".join(server.tail)


def drawn(http: httpx.Client, **fields: Any) -> np.ndarray:
    response = http.post("/generate", json={"prompt": "a boat", "seed": 7, **fields})
    assert response.status_code == 200, response.text
    image = Image.open(io.BytesIO(base64.b64decode(response.json()["images"][0]["b64_json"])))
    return np.asarray(image).astype(int)


def prefers(http: httpx.Client, user: str, preferred: str, rejected: str) -> None:
    sides = [
        {"b64_json": base64.b64encode(png((48, 32), colour)).decode()}
        for colour in (preferred, rejected)
    ]
    pair = {"prompt": "a house", "preferred": sides[0], "rejected": sides[1]}
    answer = http.post(f"/users/{user}/preferences", json={"pairs": [pair] * 5})
    assert answer.status_code == 201, answer.text
    assert answer.json()["embedding"]["status"] == "current"


def test_opposite_choices_make_other_pictures(http: httpx.Client) -> None:
    prefers(http, "warm", "red", "blue")
    prefers(http, "cold", "blue", "red")
    warm, cold, nobody = drawn(http, user_id="warm"), drawn(http, user_id="cold"), drawn(http)
    for one, other in ((warm, cold), (warm, nobody), (cold, nobody)):
        assert np.abs(one - other).max() > SEEN
    assert np.array_equal(drawn(http, user_id="warm"), warm)
    assert np.array_equal(drawn(http, user_id="warm", preference_scale=0), nobody)
