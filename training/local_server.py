"""The real server as a child of this process, for as long as a ``with`` lasts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

COMMAND = (str(Path(sys.executable).with_name("ppd")), "serve")
STOP_SECONDS = 30.0
_READY = "ready "
_POLL_SECONDS = 0.1
_LAST_LINES = 15


class ServerFailed(Exception):
    """The server ended before it was ready; its last words are in the exception's notes."""


@contextmanager
def local_server(
    port: int | None = None, *, settings: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start ``ppd serve`` on loopback with nobody's data; yields its URL once it is ready.

    Whatever ends the block (an error, Ctrl-C, SIGTERM, a closed terminal), the server is stopped
    before the exception leaves; an error carries the end of the server's log as a note.
    port: a free one if not given; settings: more ``PPD_*`` variables. Raises ServerFailed, or
    OSError if it can't be started.
    """
    place = tempfile.TemporaryDirectory(prefix="ppd-local-", ignore_cleanup_errors=True)
    with _every_end_is_ctrl_c(), place as scratch:
        log = Path(scratch) / "server.log"
        flags = ("--port", str(port or free_port()), "--data", str(Path(scratch) / "data"))
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*COMMAND, *flags],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(settings or {})},
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
            )
        try:
            yield _wait_until_ready(process, log)
        except Exception as error:
            error.add_note(_last_words(log))
            raise
        finally:
            _stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    # Through the file and not a pipe: nobody reads on once it is ready, and a pipe would fill.
    while True:
        ended = process.poll()
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith(_READY) and line.endswith("\n"):
                return line.removeprefix(_READY).strip()
        if ended is not None:
            raise ServerFailed(f"the server ended with exit code {ended} before it was ready")
        time.sleep(_POLL_SECONDS)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join(["the server's last words:", *(lines or ["(none)"])])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except BaseException as reason:  # too slow, or Ctrl-C once more: leave nothing behind
        process.kill()
        process.wait()
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise


@contextmanager
def _every_end_is_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP would end this process without a word; here they unwind it, too.

    Ctrl-C itself is set because a shell's background jobs are started deaf to it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)  # asyncio, too, knows what to do with this one

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt),
        signal.SIGHUP: signal.signal(signal.SIGHUP, interrupt),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
