"""Where a setting comes from, what is refused, and what ``ppd`` says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ppd_serve import serve_app
from ppd_serve.cli import app
from ppd_serve.errors import PPDError
from ppd_serve.launch import IMPORT_PATH, launch, read_config
from ppd_serve.manifest import read_manifest
from ppd_serve.settings import Settings

ROOT = Path(__file__).parents[1]


def test_flags_beat_variables_beat_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = {"host": "file", "port": 1, "drain_s": 1.0, "encoder": {"threads": 1, "cpus": 3}}
    monkeypatch.setenv("PPD_HOST", "variable")
    monkeypatch.setenv("PPD_PORT", "2")
    monkeypatch.setenv("PPD_ENCODER__THREADS", "7")
    settings = Settings.load(file, {"host": "flag"})
    assert (settings.host, settings.port, settings.drain_s) == ("flag", 2, 1.0)
    assert (settings.encoder.threads, settings.encoder.cpus) == (7, 3)


def test_paths_mean_the_same_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load({"data": "here", "blob_url": "there"})
    assert settings.data == tmp_path / "here"
    assert settings.blobs == str(tmp_path / "there")
    assert Settings.load({"blob_url": "s3://b"}).blobs == "s3://b"
    assert settings.database == f"sqlite:///{tmp_path}/here/ppd.db"


def test_pages_that_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().cors_origins == []
    monkeypatch.setenv("PPD_CORS_ORIGINS", '["https://app.example", "http://localhost:3000"]')
    assert Settings.load().cors_origins == ["https://app.example", "http://localhost:3000"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": 1},
        {"encoder": {"colour": 1}},
        {"port": 0},
        {"api_keys": {"short": "p"}},
        {"api_keys": {"k" * 20: "a/b"}},
        {"link_secret": ""},
        {"link_secret": "short"},
        {"cors_origins": ["app.example"]},
        {"cors_origins": ["https://app.example/page"]},
        {"cors_origins": ["https://*.example"]},
        {"gateways": 2},
        {"database_url": "sqlite:///x"},
        {"gateways": 2, "database_url": "sqlite:////x", "blob_url": "s3://b"},
        {"gateways": 2, "database_url": "postgresql://x"},
        {"gateways": 2, "database_url": "postgresql://x", "blob_url": "s3://b"},  # whose links?
        {"ray_address": "auto"},
        {"log_format": "xml"},
        {"index": {"replicas": 2}},
        {"diffuser": {"replicas": 0}},
        {"diffuser": {"replicas": {"max": 2}}},
        {"diffuser": {"replicas": {"min": 3, "max": 2, "target_ongoing_requests": 8}}},
        {"encoder": {"replicas": {"min": 0, "max": 2, "target_ongoing_requests": 8}}},
        {"diffuser": {"attention_backend": "magic"}},
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.load(wrong)


def test_more_gateways_on_shared_storage() -> None:
    shared = {"database_url": "postgresql://x", "blob_url": "s3://b", "link_secret": "s" * 16}
    assert Settings.load({"gateways": 2, **shared}).gateways == 2


def test_as_many_replicas_as_the_load_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPD_ENCODER__REPLICAS", "2")
    wanted = {"min": 1, "max": 4, "target_ongoing_requests": 8}
    settings = Settings.load({"diffuser": {"replicas": wanted, "attention_backend": "native"}})
    gateway, encoder, index, diffuser = _deployments(settings)
    scales = [each.num_replicas for each in (gateway, encoder, index)]
    assert scales == [1, 2, 1]
    scaling = diffuser._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.target_ongoing_requests == 8
    assert diffuser.user_config == {"rows": 16, "queue": 256}
    with pytest.raises(ValidationError, match="max must be at least min"):
        Settings.load({"diffuser": {"replicas": {**wanted, "min": 5}}})


def _deployments(settings: Settings) -> list[Any]:
    gateway = serve_app.application(settings)._bound_deployment
    return [gateway, *(part._bound_deployment for part in gateway.init_args)]


def test_keys_are_not_printed() -> None:
    settings = Settings.load({"api_keys": {"k" * 20: "p"}, "link_secret": "hush" * 4})
    assert "k" * 20 not in repr(settings) and "hush" not in repr(settings)


def test_only_loopback_without_keys(tmp_path: Path) -> None:
    with pytest.raises(PPDError, match="allow_unauthenticated"):
        launch(Settings.load({"host": "0.0.0.0", "data": tmp_path}))


def test_the_shipped_config_is_ours() -> None:
    settings = Settings.load(read_config(ROOT / "deployments" / "studio.yaml"))
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.encoder.cpus + settings.diffuser.cpus < 1


def test_a_config_s_capacity_counts_as_when_it_is_deployed(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"""applications:
  - import_path: {IMPORT_PATH}
    args: {{diffuser: {{rows: 16, queue: 256}}}}
    deployments: [{{name: Diffuser, user_config: {{rows: 3}}}}]
""")
    diffuser = Settings.load(read_config(file)).diffuser
    assert (diffuser.rows, diffuser.queue) == (3, 256)
    file.write_text(file.read_text().replace("user_config: {rows: 3}", "num_replicas: 2"))
    with pytest.raises(ValueError, match="Diffuser's user_config"):
        read_config(file)


@pytest.mark.parametrize("text", ["", "[]", "applications: []", "applications: [{import_path: x}]"])
def test_other_configs_are_not(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="import_path"):
        read_config(file)
    assert CliRunner().invoke(app, ["serve", "--config", str(file)]).exit_code == 2


def test_wrong_settings_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPD_DRAIN_S", "soon")
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, "drain_s" in result.output) == (2, True)
    monkeypatch.delenv("PPD_DRAIN_S")
    monkeypatch.setenv("PPD_RELEASE", str(tmp_path))
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, "release.json" in result.output) == (2, True)


def test_a_manifest_alone_is_read_but_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text(
        '{"name":"r","version":"1","backbone":{"path":"b"},"defaults":'
        '{"sizes":[[64,64]],"steps":4,"guidance_scale":3,"sampler":"ddim"}}'
    )
    assert read_manifest(tmp_path).name == "r"
    for place in (str(tmp_path), "/nowhere"):
        assert CliRunner().invoke(app, ["release", "describe", place]).exit_code == 1
