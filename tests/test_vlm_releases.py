"""A release around each class of VLM: its transform fitted first, then choices to pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppd_serve.actors.encoder import Encoder
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.picture import encode_picture
from ppd_serve.diffusion.request import User
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.encoder import Encoder as VlmEncoder
from ppd_serve.preferences.encoder import load_vlm
from ppd_serve.preferences.pairs import Pair
from ppd_serve.release import Release, Source, load_release, write_release
from ppd_serve.settings import EncoderPart
from tests.tiny_release import make_tiny_release
from tests.twins.encoders import LAYERS, VLMS, make_vlm
from training.data.choices import Choice
from training.transform import encoder_to_fit, fit, ship, states_of_people

DIRECTIONS = 5


def choice(user: int, number: int) -> Choice:
    rng = np.random.default_rng([user, number])
    blocks = rng.integers(0, 256, (2, 4, 4, 3), np.uint8).repeat(12, 1).repeat(16, 2)
    return Choice(str(user), "a house", *map(encode_picture, blocks), "", "")


def pairs(user: int, count: int) -> list[Pair]:
    return [choice(user, number).pair for number in range(count)]


@pytest.fixture(params=VLMS)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    """Tiny but for its encoder, whose transform is fitted before there is an adapter."""
    made = make_tiny_release(tmp_path / "release")
    shutil.rmtree(made.path / "encoder")
    make_vlm(request.param, made.path / "encoder", layers="all")
    bare = made.manifest.model_copy(update={"adapter": None, "questions": None})
    encoder = encoder_to_fit(write_release(made.path, bare))
    people = [choice(user, number) for user in range(10) for number in range(8)]
    transform = fit(states_of_people(encoder, people, 2), DIRECTIONS)
    fitted = ship(made.path, encoder, transform, dtype="float32", quantisation=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = UserAdapter.for_unet(made.load_backbone().denoiser, DIRECTIONS)
        for branch in adapter.branches:
            torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    adapter.save(made.path / "adapter" / "ip_adapter.safetensors")
    whole = fitted.manifest.model_copy(
        update={"adapter": Source(path="adapter/ip_adapter.safetensors")}
    )
    return write_release(made.path, whole)


async def test_choices_become_pictures(release: Release) -> None:
    load_release(release.path).check()
    part = Encoder(str(release.path), EncoderPart(threads=1))
    readings = [await part.embed(pairs(user, 6)) for user in (20, 21)]
    assert all(isinstance(reading.profile, str) for reading in readings)
    assert readings[0].values.shape == (LAYERS, DIRECTIONS)
    backbone = release.load_backbone()
    with Engine(backbone, release.load_adapter(backbone), embedding_rows=LAYERS) as engine:
        users = [(), *((User(reading.values),) for reading in readings)]
        wanted = [release.defaults.request("a house", seed=3, users=who) for who in users]
        base, one, other = (t.result(60).latents for t in engine.submit_all(wanted))
    for a, b in ((base, one), (base, other), (one, other)):
        assert np.abs(a - b).max() > 1e-2


def test_a_server_does_not_start_with_a_model_too_short_for_four_pairs(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it could read one."""
    one, four = (
        asked(release.load_encoder(), [pair.prompt for pair in pairs(20, count)])
        for count in (1, 4)
    )

    def short(*args: Any, **kwargs: Any) -> Any:
        model = load_vlm(*args, **kwargs)
        model.config.get_text_config().max_position_embeddings = (one + four) // 2
        return model

    monkeypatch.setattr("ppd_serve.preferences.encoder.load_vlm", short)
    assert np.isfinite(release.load_encoder().embed(pairs(20, 1)).embedding).all()
    with pytest.raises(ReleaseError, match="4 pairs and a profile are"):
        Encoder(str(release.path), EncoderPart(threads=1))


def asked(encoder: VlmEncoder, captions: list[str]) -> int:
    """Tokens of as many pairs of the release's size."""
    picture = Image.new("RGB", (64, 48))
    chunk = [(caption, picture, picture) for caption in captions]
    return int(encoder._inputs([chunk])["input_ids"].shape[1])
