"""A tiny release and the real default, loaded once a session: engines must leave them as found."""

import pytest
import torch

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release, load_release
from ppd_serve.settings import STUDIO
from tests.tiny_release import make_tiny_release


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_tiny_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def backbone(release: Release) -> Backbone:
    return release.load_backbone()


@pytest.fixture(scope="session")
def studio() -> Release:
    """The embedded default, as it is shipped."""
    return load_release(STUDIO)


@pytest.fixture(scope="session")
def studio_backbone(studio: Release) -> Backbone:
    return studio.load_backbone()


@pytest.fixture(scope="session")
def studio_adapter(studio: Release, studio_backbone: Backbone) -> UserAdapter:
    adapter = studio.load_adapter(studio_backbone)
    assert adapter is not None
    return adapter


@pytest.fixture(scope="session")
def adapter(release: Release, backbone: Backbone) -> UserAdapter:
    adapter = release.load_adapter(backbone)
    assert adapter is not None
    return adapter
