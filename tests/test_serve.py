"""What Ray Serve does with a part while it runs: new limits, one that hangs, its log lines."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema
from torch import Tensor

from ppd_serve import logs, serve_app
from ppd_serve.actors import Diffuser, diffuser
from ppd_serve.diffusion.engine import Engine
from ppd_serve.errors import ActorUnavailable, GenerationFailed, PPDError
from ppd_serve.gateway.ports import Finished
from ppd_serve.launch import ENVIRONMENT
from ppd_serve.local_ray import start_ray
from ppd_serve.meters import Beat, Meters
from ppd_serve.serve_app import Remote
from ppd_serve.settings import DiffuserPart
from tests.diffusion.toy import DEFAULTS, Toy
from tests.test_drawing_actor import ask

pytestmark = pytest.mark.slow

WAIT = 300


class ToyDiffuser(Diffuser):
    """The actor with a real engine and no weights, which never comes back from a wide picture."""

    def __init__(self) -> None:
        logs.configure("json")
        diffuser.SILENT_SECONDS = 5.0
        self._replica, self._part = "toy", DiffuserPart(rows=4, queue=8)
        self._release = SimpleNamespace(defaults=DEFAULTS, name="toy")  # type: ignore[assignment]
        self._engine = Engine(Toy(_hang), max_rows=4, queue_limit=8).start()

    async def looks(self) -> tuple[int, int, int]:
        return os.getpid(), self._engine.max_rows, self._engine.queue_limit


def _hang(x: Tensor) -> None:
    if x.shape[-1] == 8:
        threading.Event().wait()


def build(args: dict[str, Any]) -> serve.Application:
    """What a Ray Serve config names."""
    deployment = serve.deployment(
        ToyDiffuser, name="Diffuser", health_check_period_s=0.5, graceful_shutdown_timeout_s=1,
        ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    return deployment.bind()


def deploy(**options: Any) -> None:
    """As ``serve deploy`` does."""
    app = {
        "name": "toy", "route_prefix": None, "import_path": f"{__name__}:build",
        "deployments": [{"name": "Diffuser", **options}],
    }  # fmt: skip
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[app]))


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Of a Ray Serve with nothing on it."""
    # Not under pytest's own directory: a socket's path must be short.
    place = tempfile.TemporaryDirectory(prefix="ppd-", ignore_cleanup_errors=True)
    with place as directory, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])}.items():
            patch.setenv(name, value)
        start_ray(directory)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        yield Path(directory)
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
async def handle(scratch: Path) -> DeploymentHandle:
    deploy(user_config={"rows": 3})

    async def there() -> Any:
        return serve.status().applications["toy"].status == "RUNNING"

    await until(there)
    return serve.get_deployment_handle("Diffuser", "toy")


async def until(true: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(WAIT):
        while not (found := await true()):
            await asyncio.sleep(0.1)
    return found


async def test_new_limits_keep_the_part(handle: DeploymentHandle) -> None:
    process, *limits = await handle.looks.remote()
    assert limits == [3, 8]
    deploy(user_config={"queue": 5})

    async def changed() -> Any:
        return await handle.looks.remote() == (process, 4, 5)

    await until(changed)


async def test_the_lines_of_a_part_carry_the_id(handle: DeploymentHandle, scratch: Path) -> None:
    logs.request_id.set("across-processes")
    with pytest.raises(GenerationFailed):
        async for _ in Remote(handle).draw(ask("nan")):
            pass

    async def told() -> list[dict[str, str]]:
        files = scratch.glob("session_latest/logs/worker-*.err")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines if "could not be made" in line]  # told once

    (line,) = await until(told)
    assert (line["logger"], line["request_id"]) == ("ppd_serve.diffusion.batch", "across-processes")


async def test_an_engine_that_hangs_is_replaced(handle: DeploymentHandle) -> None:
    first, *_ = await handle.looks.remote()
    stuck = Remote(handle).draw(ask(width=64))
    await anext(stuck)

    async def another() -> Any:
        with suppress(PPDError, StopAsyncIteration):
            await anext(stuck)
        try:
            return (await Remote(handle)._call("looks"))[0] != first
        except ActorUnavailable:
            return False

    await until(another)
    events = [event async for event in Remote(handle).draw(ask())]
    assert isinstance(events[-1], Finished)


async def test_ray_tells_what_we_tell(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app, "PUBLISH_SECONDS", 0.5)
    meters = Meters()
    meters.requests.labels("GET", "/users/{user_id}", "200").observe(0.1)
    meters.heard(Beat("toy", {"queued": 7}))
    publishing = asyncio.create_task(serve_app._publish(meters.registry))
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    async def told() -> Any:
        async with httpx.AsyncClient(trust_env=False) as http:
            lines = (await http.get(address)).text.splitlines()
        return [line for line in lines if line.startswith("ray_ppd_engine_queue_length{")]

    (line,) = await until(told)
    assert 'replica="toy"' in line and line.endswith(" 7.0")
    publishing.cancel()
