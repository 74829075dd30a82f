"""``ppd serve``: a private Ray, the application on it, and a clean end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import yaml

from ppd_serve.api.auth import is_loopback
from ppd_serve.errors import PPDError
from ppd_serve.settings import Settings

IMPORT_PATH = "ppd_serve.serve_app:build"
START_SECONDS = 600.0
FREE_SECONDS = 15.0  # what a server that was killed may take to let go of its port
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ppd_serve.api.edge:in_proxy",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after its 5 s a busy machine would start over
    "RAY_worker_niceness": "0",  # Ray's 15 would let any other work on the machine come first
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at 0.1 a fifth of what an idle server takes
    "GOMP_SPINCOUNT": "20000",  # torch's workers wait awake for about 1 ms, not 16
    "RAY_DEDUP_LOGS": "0",  # lines that differ in their request's id alone are different
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a part with gpus: 0 still sees what is there
}


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a Ray Serve config: ``args`` of its only application, the diffuser's capacity
    where its ``deployments`` say it, and its address. Raises ``ValueError`` for any other file,
    ``OSError`` for none."""
    try:
        config = yaml.safe_load(file.read_text())
        (application,) = config["applications"]
        if application["import_path"] != IMPORT_PATH:
            raise ValueError
        args = dict(application.get("args") or {})
        for deployment in application.get("deployments") or []:
            if deployment.keys() != {"name", "user_config"} or deployment["name"] != "Diffuser":
                raise ValueError
            args["diffuser"] = {**args.get("diffuser", {}), **deployment["user_config"]}
        address = config.get("http_options") or {}
        return {k: address[k] for k in ("host", "port") if k in address} | args
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{file}: needs one application with import_path: {IMPORT_PATH}, and of deployments "
            "nothing but a Diffuser's user_config (serve deploy takes the rest)"
        ) from None


def launch(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ``PPDError``, ``RuntimeError`` or ``OSError`` when the
    server can't start."""
    if not (settings.allow_unauthenticated or is_loopback(settings.host) or _has_keys(settings)):
        raise PPDError(
            f"without API keys, {settings.host} is refused: only loopback is served (make one with "
            "ppd keys create; allow_unauthenticated: true lifts this)"
        )
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            return
        stop.set()
        raise SystemExit(0)

    _on_signals(on_signal)
    _wait_for_port(settings.host, settings.port)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if settings.log_format == "json":
        os.environ["RAY_DISABLE_WORKER_LOG_PREFIX"] = "1"  # each line is an object, and no more

    from ppd_serve import serve_app

    # Everything of this Ray lies in a directory and on ports of its own: what a killed server may
    # have left running can't be mistaken for it. The kernel ends Ray's processes with this one.
    scratch = tempfile.mkdtemp(prefix="ppd-")
    try:
        serve_app.start(settings, scratch)
        _on_signals(on_signal)  # Ray put its own in place
        url = _url(settings.host, settings.port)
        _wait_until_ready(url)
        print(f"ready {url}", flush=True)
        while not stop.wait(3600):
            pass
    finally:
        stop.set()
        serve_app.stop(settings)
        shutil.rmtree(scratch, ignore_errors=True)


def _has_keys(settings: Settings) -> bool:
    if settings.api_keys:
        return True
    from ppd_serve.storage.store import Store

    with closing(Store.open(settings.database, settings.blobs)) as store:
        return bool(store.keys())


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _url(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _wait_for_port(host: str, port: int) -> None:
    """Ray's proxy shares ports (``SO_REUSEPORT``), so a second server would start and get half of
    the calls. Raises ``OSError`` if somebody still listens after a while."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise OSError(f"can't listen on {host}:{port}: {error.strerror}") from None
        time.sleep(0.2)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    missing = ""
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                answer = http.get("/readyz")
                if answer.status_code == 200:
                    return
                missing = answer.json().get("detail", "")
            except (httpx.HTTPError, ValueError) as error:
                missing = repr(error)
            time.sleep(0.2)
    print(missing, file=sys.stderr)
    raise RuntimeError(f"not ready after {START_SECONDS:.0f} s: {missing}")
