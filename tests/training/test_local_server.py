"""However the block ends, no server stays behind. Stand-ins play the server here."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from training import local_server as module
from training.local_server import ServerFailed, local_server

READY = "import os, sys, time; print('ready http://here', os.getpid(), flush=True); time.sleep(60)"


def play(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", script))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_in(url: str) -> int:
    return int(url.split()[-1])


def test_it_runs_inside_the_block_and_is_gone_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, READY)

    with local_server() as url:
        assert url.startswith("http://here")
        assert alive(pid_in(url))

    assert not alive(pid_in(url))


def test_it_gets_its_own_port_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, READY.replace("os.getpid()", "*sys.argv[1:]"))

    with local_server(4321) as told:
        flags = told.split()[1:]
        assert flags[:3] == ["--port", "4321", "--data"]
        assert Path(flags[3]).parent.is_dir()

    assert not Path(flags[3]).parent.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_us_ends_it(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    play(monkeypatch, READY)
    before = signal.getsignal(number)

    with pytest.raises(KeyboardInterrupt), local_server() as url:
        signal.raise_signal(number)

    assert not alive(pid_in(url))
    assert signal.getsignal(number) == before


def test_an_error_carries_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    play(
        monkeypatch, READY.replace("print(", "print('a hint', file=sys.stderr, flush=True); print(")
    )

    with pytest.raises(RuntimeError, match="ours") as caught, local_server() as url:
        raise RuntimeError("ours")

    assert "a hint" in caught.value.__notes__[0]
    assert not alive(pid_in(url))


def test_a_server_that_does_not_start_is_an_error_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play(monkeypatch, "raise SystemExit('no release here')")

    with pytest.raises(ServerFailed, match="exit code 1") as caught, local_server():
        pytest.fail("never ready")

    assert "no release here" in caught.value.__notes__[0]


def test_a_server_deaf_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY)
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)

    with local_server() as url:
        pass

    assert not alive(pid_in(url))
