"""SD 1.5 and SDXL in miniature with an adapter as it is published, biases and all: what holds of
ours holds of it."""

from __future__ import annotations

import pytest

from ppd_serve.release import write_release
from tests.diffusion.test_twins import (  # noqa: F401 (fixtures, and tests to be run here too)
    FAMILIES,
    Twin,
    stock_with_adapter,
    test_blends,
    test_only_the_swapped_row_changes,
    test_unmodified_diffusers_loads_the_adapter,
)
from tests.twins.day_one import add_biases
from tests.twins.releases import TWINS


@pytest.fixture(scope="module", params=FAMILIES)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    made = TWINS[request.param](tmp_path_factory.mktemp(request.param), make_encoder=None)
    assert made.adapter_path is not None
    add_biases(made.adapter_path)
    release = write_release(made.path, made.manifest)
    backbone = release.load_backbone()
    adapter = release.load_adapter(backbone)
    assert adapter is not None and adapter.has_biases
    return Twin(release, backbone, adapter)
