import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppd_serve.diffusion.engine import Engine
from ppd_serve.errors import ReleaseError
from ppd_serve.release import MANIFEST, Release, Source, load_release, write_release
from tests.tiny_release import EMBEDDING_ROWS, make_tiny_release


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_release(tmp_path_factory.mktemp("published")).path


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Release:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    return load_release(tmp_path)


def test_serves_from_its_directory(release: Release) -> None:
    release.check()
    backbone = release.load_backbone()
    adapter = release.load_adapter(backbone)
    with Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS) as engine:
        picture = engine.submit(release.defaults.request("a house")).result(30)
    assert picture.pixels.shape == (64, 64, 3)
    assert release.defaults.sampler in backbone.samplers
    for width, height in release.defaults.sizes:
        backbone.latent_shape(width, height)


def test_the_same_seed_writes_the_same_release(published: Path, tmp_path: Path) -> None:
    again = make_tiny_release(tmp_path / "again")
    assert again.manifest == load_release(published).manifest
    other = make_tiny_release(tmp_path / "other", seed=1)
    assert other.manifest.checksums != again.manifest.checksums


def test_describes_itself_after_a_round_trip(release: Release) -> None:
    manifest = release.manifest.model_copy(
        update={"metrics": {"win_rate": 0.8}, "training": {"steps": 3}}
    )
    written = write_release(release.path, manifest)
    read = load_release(release.path)
    assert read.manifest == written.manifest and read.manifest.metrics == {"win_rate": 0.8}
    assert MANIFEST not in read.manifest.checksums
    read.check()


@pytest.mark.parametrize("name", ["backbone/unet/evil.bin", "adapter/old.pt", "training_args.pkl"])
def test_refuses_pickles(release: Release, name: str) -> None:
    (release.path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ReleaseError, match=f"{name} is a pickle"):
        release.check()
    if name.startswith("backbone"):
        with pytest.raises(ReleaseError, match="pickle"):
            release.load_backbone()


def test_names_what_is_missing_or_changed(release: Release) -> None:
    weights = release.path / "backbone/vae/diffusion_pytorch_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + b"\x00" if original[-1] else original[:-1] + b"\x01")
    with pytest.raises(ReleaseError, match=r"vae/.*safetensors has changed"):
        release.check()
    weights.unlink()
    with pytest.raises(ReleaseError, match=r"vae/.*safetensors is missing"):
        release.check()
    weights.write_bytes(original)
    release.check()
    save_file({"x": torch.zeros(1)}, release.path / "backbone/unet/more.safetensors")
    with pytest.raises(ReleaseError, match=r"more\.safetensors has no checksum"):
        release.check()
    shutil.rmtree(release.path / "adapter")
    with pytest.raises(ReleaseError, match=r"adapter/.* is missing"):
        release.check()


def test_hidden_directories_are_no_part_of_it(release: Release) -> None:
    """What a download leaves beside the files it was for."""
    left = release.path / "backbone/.cache/huggingface/download/unet.lock"
    left.parent.mkdir(parents=True)
    left.write_text("1")
    written = write_release(release.path, release.manifest)
    assert written.manifest.checksums == release.manifest.checksums
    shutil.rmtree(release.path / "backbone/.cache")
    written.check()
    (release.path / "encoder").rename(release.path / ".encoder")
    moved = release.manifest.model_copy(update={"encoder": Source(path=".encoder")})
    with pytest.raises(ReleaseError, match=r"\.encoder is hidden"):
        write_release(release.path, moved).check()


def test_refuses_links_to_directories(
    release: Release, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "unet"
    shutil.move(release.path / "backbone/unet", elsewhere)
    (release.path / "backbone/unet").symlink_to(elsewhere, target_is_directory=True)
    for attempt in (release.check, lambda: write_release(release.path, release.manifest)):
        with pytest.raises(ReleaseError, match="backbone/unet is a link to a directory"):
            attempt()


def test_refuses_the_adapter_of_another_backbone(release: Release) -> None:
    assert release.adapter_path is not None
    state = load_file(release.adapter_path)
    key = "ip_adapter.1.to_k_ip.weight"
    save_file(state | {key: torch.zeros(7, state[key].shape[1])}, release.adapter_path)
    rewritten = write_release(release.path, release.manifest)
    with pytest.raises(ReleaseError, match="another backbone"):
        rewritten.check()
    with pytest.raises(ReleaseError, match="another backbone"):
        rewritten.load_adapter(rewritten.load_backbone())


def test_refuses_an_adapter_of_another_embedding(release: Release) -> None:
    other = release.manifest.model_copy(update={"embedding_shape": (2, 99)})
    with pytest.raises(ReleaseError, match="not 99"):
        write_release(release.path, other).check()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"version": None}, "version"),
        ({"surprise": 1}, "surprise"),
        ({"backbone": {"path": "../elsewhere"}}, "backbone"),
        ({"backbone": {"path": "/etc"}}, "backbone"),
        ({"backbone": {"hub_id": "a/b"}}, "backbone"),
        ({"defaults": {"steps": 4}}, "defaults"),
    ],
)
def test_names_the_field_that_is_wrong(release: Release, change: dict, where: str) -> None:
    manifest = json.loads((release.path / MANIFEST).read_text())
    (release.path / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(ReleaseError, match=rf"{MANIFEST}: {where}"):
        load_release(release.path)


def test_a_directory_without_manifest_or_pipeline(tmp_path: Path, release: Release) -> None:
    with pytest.raises(ReleaseError, match=r"no release\.json"):
        load_release(tmp_path / "nothing")
    index = release.backbone_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "MysteryPipeline"}))
    with pytest.raises(ReleaseError, match="MysteryPipeline"):
        release.load_backbone()
    index.unlink()
    with pytest.raises(ReleaseError, match=r"model_index\.json"):
        release.load_backbone()


def test_parts_it_does_not_have(release: Release) -> None:
    bare = release.manifest.model_copy(update={"adapter": None, "encoder": None})
    plain = write_release(release.path, bare)
    plain.check()
    assert plain.adapter_path is None and plain.encoder_path is None
    assert plain.load_adapter(plain.load_backbone()) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [({"sampler": "magic"}, "sampler"), ({"sizes": ((60, 64),)}, "width"), ({"steps": 0}, "steps")],
)
def test_defaults_must_be_possible(release: Release, change: dict, what: str) -> None:
    defaults = dataclasses.replace(release.defaults, **change)
    impossible = write_release(
        release.path, release.manifest.model_copy(update={"defaults": defaults})
    )
    with pytest.raises(ReleaseError, match=f"defaults: {what}"):
        impossible.load_backbone()


def test_parts_on_the_hub(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own download for a backbone, one file or folder for the rest; no network."""
    asked: list[tuple[str, str, object]] = []

    def pipeline(repo: str, *, revision: str, use_safetensors: bool, **_: object) -> str:
        asked.append((repo, revision, use_safetensors))
        return str(release.path / "backbone")

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(release.path)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", pipeline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    file = "adapter/ip_adapter.safetensors"
    remote = {
        "backbone": Source(hub_id="some/sd", revision="r1"),
        "adapter": Source(hub_id="our/adapter", revision="r2", path=file),
    }
    hub = write_release(release.path, release.manifest.model_copy(update=remote))
    assert hub.load_adapter(hub.load_backbone()) is not None
    assert ("some/sd", "r1", True) in asked and ("our/adapter", "r2", [file]) in asked
