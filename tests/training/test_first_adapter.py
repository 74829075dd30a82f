"""A release that has no adapter of its own yet gets one by training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ppd_serve.release import Release, Source, write_release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS, make_tiny_release
from training.evaluate.run import POPULATION
from training.policy import Policy
from training.recipes import Recipe
from training.run import Job, write_new_release


def new_adapter(release: Release, where: Path) -> Release:
    """The release that a run without a step would write."""
    policy = Policy(
        release.load_backbone(), weights="adapter", conditioning="user",
        embedding_shape=(EMBEDDING_ROWS, EMBEDDING_DIM),
    )  # fmt: skip
    how = Recipe(objective="dpo", conditioning="user")
    job = Job(how, "studio", release.path, where / "out", where / "work")
    return write_new_release(release, job, policy, None)


@pytest.mark.parametrize(
    "before", [None, Source(hub_id="h94/IP-Adapter", revision="0" * 40, path="a.safetensors")]
)
def test_training_puts_it_in_its_usual_place(tmp_path: Path, before: Source | None) -> None:
    whole = make_tiny_release(tmp_path / "before")
    shutil.rmtree(whole.path / "adapter")
    release = write_release(whole.path, whole.manifest.model_copy(update={"adapter": before}))

    trained = new_adapter(release, tmp_path)

    trained.check()
    assert trained.manifest.adapter == Source(path="adapter/ip_adapter.safetensors")
    assert trained.load_adapter(trained.load_backbone()) is not None


def test_a_control_of_the_old_adapter_does_not_stay(tmp_path: Path) -> None:
    """Trained on other choices for other steps, "personal minus population" would say nothing."""
    release = make_tiny_release(tmp_path / "before")
    old = release.path / "adapter" / POPULATION
    shutil.copy(release.path / "adapter" / "ip_adapter.safetensors", old)
    release = write_release(release.path, release.manifest)
    trained = new_adapter(release, tmp_path)
    trained.check()
    assert old.exists() and not (trained.path / "adapter" / POPULATION).exists()
