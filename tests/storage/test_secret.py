from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppd_serve.errors import PPDError
from ppd_serve.storage.secret import kept_secret


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "link_secret"
    secret = kept_secret(path)
    assert len(secret) == 32 and kept_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["link_secret"]


def test_all_who_start_at_once_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "link_secret"
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: kept_secret(path), range(32)))) == 1


@pytest.mark.parametrize("content", [b"", b"x" * 31])
def test_a_torn_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "link_secret"
    path.write_bytes(content)
    with pytest.raises(PPDError, match="link_secret"):
        kept_secret(path)
    assert path.read_bytes() == content


def test_dying_while_it_is_written_leaves_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "link_secret"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            kept_secret(path)
    assert not path.exists()
    assert len(kept_secret(path)) == 32
