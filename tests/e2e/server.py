"""The real server as a child process, to be spoken to over HTTP and treated badly."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import httpx

ENVIRONMENT = {
    "PPD_ENCODE_WAIT_S": "8",  # many times what this tiny VLM takes
    "PPD_INDEX_SAVE_S": "0.2",
    "PPD_DIFFUSER__THREADS": "1",
    "PPD_ENCODER__THREADS": "1",
}


class Server:
    """``ppd serve`` on a free port. ``tail`` is the end of what it printed."""

    def __init__(self, release: Path, directory: Path) -> None:
        self.release, self.directory = release, directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data = directory / "data"
        self.tail: deque[str] = deque(maxlen=200)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        """Return when it has printed its ready line."""
        command = [
            sys.executable, "-c", "from ppd_serve.cli import app; app()", "serve",
            "--port", str(self.port), "--data", str(self.data),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, **ENVIRONMENT, "PPD_RELEASE": str(self.release)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(ready,), daemon=True).start()
        ready.wait()
        assert f"ready {self.url}" in self.tail, "\n".join(self.tail)
        return self

    def _listen(self, ready: threading.Event) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.tail.append(line.rstrip())
            if line.startswith("ready "):
                ready.set()
        ready.set()  # it has ended

    def actor(self, name: str) -> int:
        """The process of an actor. Raises ``LookupError`` while there is none."""
        for pid in _descendants(self.process.pid):
            if _title(pid).startswith(f"ray::ServeReplica:ppd:{name}"):
                return pid
        raise LookupError(name)

    def kill(self) -> None:
        """``kill -9``, and wait until nothing of it is left."""
        family = list(_descendants(self.process.pid))
        self.process.kill()
        self.process.wait()
        for pid in family:
            _wait_gone(pid)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options)  # type: ignore[arg-type]


def _descendants(pid: int) -> Iterator[int]:
    for child in _children().get(pid, []):
        yield child
        yield from _descendants(child)


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        found.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _wait_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)  # readable once the process has ended
    ended = poller.poll(60_000)
    os.close(descriptor)
    assert ended, f"process {pid} outlived the server by a minute: {_title(pid)}"
