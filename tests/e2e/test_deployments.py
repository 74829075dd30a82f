"""``ppd serve --config`` of every file in deployments/, on a miniature of the models it is for.

What a machine without GPUs needs otherwise, and the release's place, is said by ``PPD_*``
variables; all the rest is the file's. The release is made by ``ppd release build``, for the
quantisation with which the file has its encoder run.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ppd_serve.launch import read_config
from ppd_serve.settings import Settings
from tests.api.doubles import png
from tests.e2e.server import Server
from tests.tiny_release import make_tiny_release
from tests.twins.day_one import make_day_one
from tests.twins.encoders import make_fitted_vlm
from tests.twins.releases import TWINS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
MINIATURES: dict[str, Callable[[Path], object]] = {
    "studio": make_tiny_release,
    "sd15": make_day_one,
    "sdxl": partial(TWINS["sdxl"], make_encoder=partial(make_fitted_vlm, "qwen2_5_vl")),
    "stable-cascade": partial(
        TWINS["stable_cascade"], make_encoder=partial(make_fitted_vlm, "smolvlm")
    ),
}
"""By the name of the file, what writes a release of these models to a directory."""

NO_GPU = {
    **{f"PPD_{part}__{field}": value
       for part in ("ENCODER", "DIFFUSER")
       for field, value in {"DEVICE": "cpu", "DTYPE": "float32", "GPUS": "0"}.items()},
    **{f"PPD_{part}__CPUS": "0.1" for part in ("GATEWAY", "INDEX", "ENCODER", "DIFFUSER")},
}  # fmt: skip


@pytest.fixture(scope="module", params=MINIATURES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    config = DEPLOYMENTS / f"{request.param}.yaml"
    release = tmp_path_factory.mktemp("release")
    MINIATURES[request.param](release)
    build(release, Settings.load(read_config(config)))
    server = Server(release, tmp_path_factory.mktemp("server"), config=config, **NO_GPU).start()
    yield server
    assert server.stop() == 0, "\n".join(server.tail)


def build(release: Path, settings: Settings) -> None:
    """Its space is that of an encoder on a CPU, in float32, with the file's quantisation."""
    command = [Path(sys.executable).with_name("ppd"), "release", "build", release]
    if settings.encoder.quantisation:
        command += ["--quantisation", settings.encoder.quantisation]
    subprocess.run(command, check=True)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def prefer(http: httpx.Client, user: str, preferred: str, rejected: str) -> None:
    sides = (base64.b64encode(png((32, 32), colour)).decode() for colour in (preferred, rejected))
    pair = dict(zip(("preferred", "rejected"), ({"b64_json": side} for side in sides), strict=True))
    answer = http.post(
        f"/users/{user}/preferences", json={"pairs": [{"prompt": "a house", **pair}]}
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["embedding"]["status"] == "current"


def draw(http: httpx.Client, users: dict[str, float]) -> np.ndarray:
    weights = [{"user_id": user, "weight": weight} for user, weight in users.items()]
    body = {"prompt": "a boat", "seed": 5, **({"users": weights} if weights else {})}
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    told = {user["user_id"]: user["personalized"] for user in answer.json()["users"]}
    assert told == {user: weight != 0 for user, weight in users.items()}
    (image,) = answer.json()["images"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))), int)


def test_preferences_become_pictures(http: httpx.Client) -> None:
    prefer(http, "ann", "red", "blue")
    prefer(http, "bob", "blue", "red")
    tastes = [{}, {"ann": 1.0}, {"bob": 1.0}, {"ann": 0.5, "bob": 0.5}]
    alone = [draw(http, taste) for taste in tastes]
    for i, one in enumerate(alone):
        assert all((one != other).any() for other in alone[i + 1 :])
    assert (draw(http, {"ann": 0.0}) == alone[0]).all()
    with ThreadPoolExecutor(len(tastes)) as callers:
        together = callers.map(lambda taste: draw(http, taste), tastes)
    for one, beside_others in zip(alone, together, strict=True):
        assert np.abs(one - beside_others).max() <= 1
