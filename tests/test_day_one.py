"""A deployment before it has trained anything: a public IP-Adapter and the CLIP tower it is for."""

from __future__ import annotations

import numpy as np
import pytest

from ppd_serve.actors.encoder import Encoder
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.picture import encode_picture
from ppd_serve.diffusion.request import User
from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, load_release
from ppd_serve.settings import EncoderPart
from tests.twins.day_one import make_day_one


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_day_one(tmp_path_factory.mktemp("release"))


def pair(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    return Pair("x", *(encode_picture(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in "ab"))


async def test_choices_become_pictures(release: Release) -> None:
    """By way of the actor that a server runs."""
    load_release(release.path).check()
    part = Encoder(str(release.path), EncoderPart(threads=1))
    readings = [await part.embed([pair(seed), pair(seed + 1)]) for seed in (1, 5)]
    backbone = release.load_backbone()
    with Engine(backbone, release.load_adapter(backbone), embedding_rows=1) as engine:
        users = [(), *((User(reading.values),) for reading in readings)]
        wanted = [release.defaults.request("a house", seed=3, users=who) for who in users]
        base, one, other = (t.result(60).latents for t in engine.submit_all(wanted))
    for a, b in ((base, one), (base, other), (one, other)):
        assert np.abs(a - b).max() > 1e-2


def test_it_has_no_vlm(release: Release) -> None:
    with pytest.raises(ReleaseError, match="no VLM"):
        release.load_vlm()
