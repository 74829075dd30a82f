"""Production checkpoints in miniature through the real server: choices in, pictures out.

Every backbone and every encoder once, together, for each start of a server takes its time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.api.doubles import png
from tests.e2e.conftest import is_problem
from tests.e2e.server import Server
from tests.twins.day_one import make_day_one
from tests.twins.encoders import make_fitted_vlm
from tests.twins.releases import TWINS

pytestmark = pytest.mark.e2e

SEEN, UNSEEN = 2, 1  # of 255: another user changes a picture more than any neighbour may
RELEASES: dict[str, Callable[[Path], object]] = {
    "sd15": partial(TWINS["sd15"], make_encoder=partial(make_fitted_vlm, "llava_onevision")),
    "sdxl": partial(TWINS["sdxl"], make_encoder=partial(make_fitted_vlm, "qwen3_vl")),
    "stable_cascade": TWINS["stable_cascade"],  # with the tests' own encoder
    "day_one": make_day_one,
}


@pytest.fixture(scope="module", params=RELEASES)
def http(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """One server for each release: every test has users of its own."""
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
    assert image.format == "PNG"
    return np.asarray(image).astype(int)


def prefers(
    http: httpx.Client, user: str, preferred: str, rejected: str, prompt: str = "a house"
) -> None:
    """Five choices of one colour over another: more than are read at once."""
    sides = [
        {"b64_json": base64.b64encode(png((48, 32), colour)).decode()}
        for colour in (preferred, rejected)
    ]
    made = [
        {"prompt": f"{prompt} {number}", "preferred": sides[0], "rejected": sides[1]}
        for number in range(5)
    ]
    answer = http.post(f"/users/{user}/preferences", json={"pairs": made})
    assert answer.status_code == 201, answer.text
    assert answer.json()["embedding"]["status"] == "current"


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def test_from_choices_to_a_picture(http: httpx.Client) -> None:
    release = http.get("/releases").json()["active"]
    width, height = release["sizes"][0]
    nobody = drawn(http)
    assert nobody.shape == (height, width, 3) and nobody.std() > 1
    prefers(http, "flow", "red", "blue")
    personal = drawn(http, user_id="flow")
    assert apart(drawn(http, user_id="flow"), personal) == 0
    assert apart(personal, nobody) > SEEN
    assert apart(drawn(http, user_id="flow", preference_scale=0), nobody) == 0
    width, height = release["sizes"][1]
    assert drawn(http, user_id="flow", width=width, height=height).shape == (height, width, 3)
    assert apart(drawn(http, user_id="flow", negative_prompt="rain"), personal) > 0
    wrong = http.post("/generate", json={"prompt": "a boat", "width": 72})
    is_problem(wrong, 422, "invalid-input", "width")


def test_another_users_choices_change_nothing(http: httpx.Client) -> None:
    prefers(http, "ann", "red", "blue")
    alone = drawn(http, user_id="ann")
    prefers(http, "bob", "blue", "red", "a dragon in the rain")
    assert apart(drawn(http, user_id="ann"), alone) == 0
    bobs = drawn(http, user_id="bob")
    nobody = drawn(http)
    assert apart(bobs, alone) > SEEN and apart(bobs, nobody) > SEEN
    expected = {"ann": alone, "bob": bobs, None: nobody}
    wanted = [*expected] * 3
    with ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda user: drawn(http, user_id=user), wanted))
    for user, picture in zip(wanted, together, strict=True):
        assert apart(picture, expected[user]) <= UNSEEN, user


def test_blends(http: httpx.Client) -> None:
    prefers(http, "one", "red", "blue")
    prefers(http, "two", "blue", "red")
    one, two = (drawn(http, user_id=user) for user in ("one", "two"))
    blend = drawn(http, users=[{"user_id": u, "weight": 0.5} for u in ("one", "two")])
    assert apart(blend, one) > SEEN and apart(blend, two) > SEEN
    halves = drawn(http, users=[{"user_id": "one", "weight": 0.5}] * 2)
    assert apart(halves, one) <= UNSEEN
