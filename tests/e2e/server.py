"""The real server as a child process, to be spoken to over HTTP and treated badly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import httpx
import psutil

ENVIRONMENT = {
    "PPD_ENCODE_WAIT_S": "20",  # many times what this tiny VLM takes
    "PPD_INDEX_SAVE_S": "0.2",
    "PPD_DIFFUSER__THREADS": "1",
    "PPD_ENCODER__THREADS": "1",
}


class Server:
    """``ppd serve`` on a free port, with more ``settings`` (``PPD_*``) than those that all tests
    share, and with a ``config``. ``tail`` is the end of what it printed."""

    def __init__(
        self, release: Path, directory: Path, *, config: Path | None = None, **settings: str
    ) -> None:
        self.release, self.directory, self.config = release, directory, config
        self.environment = {**ENVIRONMENT, **settings, "PPD_RELEASE": str(release)}
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
        program = Path(sys.executable).with_name("ppd")
        command = [program, "serve", "--port", str(self.port), "--data", self.data]
        if self.config is not None:
            command += ["--config", self.config, "--host", "127.0.0.1"]
        # Whatever lies where it was started is no module of the server's.
        (self.directory / "profile.py").write_text("raise RuntimeError('imported')")
        self.process = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, **self.environment},
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
        """The process of an actor, the newest: one that was given up may still be ending. Raises
        ``LookupError`` while there is none."""
        named = f"ray::ServeReplica:ppd:{name}"
        found = [process for process in self._actors() if _title(process).startswith(named)]
        if not found:
            raise LookupError(name)
        return max(found, key=psutil.Process.create_time).pid

    def _actors(self) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in family if _title(p).startswith(("ray::Serve", "ray::Proxy"))]

    def kill(self) -> None:
        """``kill -9``, and wait until nothing of it is left that holds its port or its files."""
        actors = self._actors()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(actors, timeout=300)
        assert not alive, f"these outlived the server by five minutes: {alive}"

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, trust_env=False, **options)  # type: ignore[arg-type]


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:
        return ""  # it has just ended
