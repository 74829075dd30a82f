"""``ppd keys``: what is printed, what is kept, and what is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ppd_serve import launch
from ppd_serve.cli import app
from ppd_serve.keys import OF_A_PROJECT, ApiKey, Scope, digest
from ppd_serve.settings import Settings
from ppd_serve.storage.store import Store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def ppd(data: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["keys", *words, "--data", str(data)])


def kept(data: Path) -> dict[str, ApiKey]:
    settings = Settings.load({"data": data})
    with closing(Store.open(settings.database, settings.blobs)) as store:
        return store.keys()


def test_a_key_is_printed_once_and_works(data: Path) -> None:
    words = ["--project", "app", "--name", "phone", "--scope", "read", "--scope", "generate"]
    made = ppd(data, "create", *words, "--rate-per-minute", "60", "--concurrency", "2")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()  # alone, so that a script can take it
    known = kept(data)[digest(key)]
    assert (known.project, known.name) == ("app", "phone")
    assert known.scopes == {Scope.READ, Scope.GENERATE}
    assert (known.rate_per_minute, known.concurrency) == (60, 2)
    listed = ppd(data, "list").output
    assert known.id in listed and "phone" in listed and "generate,read" in listed
    assert key not in listed and key.rpartition("_")[2] not in listed and digest(key) not in listed


def test_without_options_it_may_do_all_of_its_project(data: Path) -> None:
    key = ppd(data, "create", "--project", "app").stdout.strip()
    known = kept(data)[digest(key)]
    assert (known.scopes, known.rate_per_minute, known.concurrency) == (OF_A_PROJECT, None, None)
    assert known.expires is None


def test_revoking(data: Path) -> None:
    key = ppd(data, "create", "--project", "app", "--days", "7").stdout.strip()
    known = kept(data)[digest(key)]
    assert "until" in ppd(data, "list").output
    assert ppd(data, "revoke", known.id).exit_code == 0
    assert ppd(data, "revoke", known.id).exit_code == 0
    assert kept(data)[digest(key)].revoked is not None
    assert "revoked" in ppd(data, "list").output
    assert (ppd(data, "revoke", "nobody").exit_code, len(kept(data))) == (1, 1)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--project", "a/b"], 1),
        (["--project", "a", "--scope", "everything"], 2),
        (["--project", "a", "--concurrency", "0"], 2),
        ([], 2),
    ],
)
def test_what_is_refused(data: Path, words: list[str], status: int) -> None:
    refused = ppd(data, "create", *words)
    assert (refused.exit_code, refused.stdout) == (status, "")
    assert kept(data) == {}


def test_the_config_says_where(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    place = f"import_path: {launch.IMPORT_PATH}, args: {{data: {tmp_path}/there}}"
    file.write_text(f"applications: [{{{place}}}]")
    words = ["keys", "create", "--project", "app", "--config", str(file)]
    made = CliRunner().invoke(app, words)
    assert set(kept(tmp_path / "there")) == {digest(made.stdout.strip())}
    file.write_text("")
    assert CliRunner().invoke(app, words).exit_code == 2


def test_a_stored_key_lets_the_server_listen_anywhere(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Goes(Exception):
        pass

    def goes_on(host: str, port: int) -> None:
        raise Goes

    monkeypatch.setattr(launch, "_on_signals", lambda handler: None)
    monkeypatch.setattr(launch, "_wait_for_port", goes_on)
    settings = Settings.load({"host": "0.0.0.0", "data": data})
    ppd(data, "create", "--project", "app")
    with pytest.raises(Goes):
        launch.launch(settings)
