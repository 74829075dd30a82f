"""The server on Ray Serve: four thin actors around the rooms, and nothing else knows Ray.

Gateway ──► Encoder     pairs → embedding (VLM, its own thread)
        ├─► UserIndex   embeddings by id, neighbours (disposable)
        └─► Diffuser    picture (the engine's thread)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import psutil
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ppd_serve.actors import Diffuser, Encoder, UserIndex
from ppd_serve.api.app import create_app
from ppd_serve.api.auth import Access
from ppd_serve.api.events import Format
from ppd_serve.api.schemas import ReleaseOut
from ppd_serve.errors import ActorUnavailable, PPDError, ReleaseError
from ppd_serve.gateway.build import build_services
from ppd_serve.gateway.ports import DrawEvent, DrawRequest, IndexRow, Question, Reading
from ppd_serve.manifest import Manifest, Source, read_manifest
from ppd_serve.preferences.pairs import Pair
from ppd_serve.settings import Part, Settings

APP = "ppd"
OPEN_CALLS = 1000  # the engine's queue is the only queue: nothing waits in Ray's
OBJECT_STORE_BYTES = 200 * 2**20
START_ATTEMPTS = 4


def build(args: dict[str, Any]) -> serve.Application:
    """What a Ray Serve config names as ``import_path``; ``args`` are our Settings."""
    return application(Settings.load(file=args))


def application(settings: Settings) -> serve.Application:
    """The four deployments. Raises ``ReleaseError`` when the release can't be served."""
    manifest = read_manifest(settings.release)
    if not (manifest.encoder and manifest.embedding_space and manifest.embedding_shape):
        raise ReleaseError(f"release {manifest.name} names no encoder and embedding space")
    space, release = manifest.embedding_space, str(settings.release)

    def make_app() -> FastAPI:
        def handle(name: str) -> DeploymentHandle:
            app_name = serve.get_replica_context().app_name
            return serve.get_deployment_handle(name, app_name=app_name)

        return _app(settings, manifest, handle)

    def deployed(actor: type, part: Part, replicas: int = 1) -> serve.Deployment:
        return serve.deployment(
            actor,
            name=actor.__name__,
            num_replicas=replicas,
            ray_actor_options={"num_cpus": part.cpus, "num_gpus": part.gpus},
            max_ongoing_requests=OPEN_CALLS,
            graceful_shutdown_timeout_s=settings.drain_s,
            graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=2,
        )

    class Gateway:
        """Bound to its parts so that Ray Serve deploys them with it."""

        def __init__(self, *parts: DeploymentHandle) -> None:
            pass

    gateway = serve.ingress(make_app)(Gateway)
    return deployed(gateway, settings.gateway, settings.gateways).bind(
        deployed(Encoder, settings.encoder).bind(release, settings.encoder),
        deployed(UserIndex, settings.index).bind(
            str(settings.data / "index"), space, manifest.embedding_shape, settings.index_save_s
        ),
        deployed(Diffuser, settings.diffuser).bind(release, settings.diffuser),
    )


def _app(
    settings: Settings, manifest: Manifest, handle: Callable[[str], DeploymentHandle]
) -> FastAPI:
    """The HTTP application, made on the replica that serves it."""
    from ppd_serve.storage.store import Store

    settings.data.mkdir(parents=True, exist_ok=True)
    access = Access(
        _link_secret(settings),
        settings.api_keys,
        settings.public_url,
        loopback_only=not settings.allow_unauthenticated,
    )
    return create_app(
        build_services(
            Store.open(settings.database, settings.blobs),
            Remote(handle("Encoder")),
            Remote(handle("UserIndex")),
            Remote(handle("Diffuser")),
            _describe(manifest),
            access,
            settings.encode_wait_s,
        ),
        settings.cors_origins,
    )


def _describe(manifest: Manifest) -> ReleaseOut:
    def place(source: Source | None) -> str:
        if source is None:
            return ""
        return f"{source.hub_id}@{source.revision}" if source.hub_id else str(source.path)

    return ReleaseOut(
        name=manifest.name,
        version=manifest.version,
        backbone=place(manifest.backbone),
        encoder=place(manifest.encoder),
        embedding_space=manifest.embedding_space or "",
        sizes=list(manifest.defaults.sizes),
        example_prompts=manifest.example_prompts,
        metrics=manifest.metrics,
    )


def _link_secret(settings: Settings) -> bytes:
    from ppd_serve.storage.secret import kept_secret

    if settings.link_secret is not None:
        return settings.link_secret.get_secret_value().encode()
    return kept_secret(settings.data / "link_secret")


class Remote:
    """A part behind a handle; its errors come out as our own."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def _call(self, method: str, *args: Any) -> Any:
        response = getattr(self._handle, method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise ours(error) from None

    async def beat(self) -> None:
        await self._call("beat")

    async def embed(self, pairs: Sequence[Pair]) -> Reading:
        result: Reading = await self._call("embed", list(pairs))
        return result

    async def ask(self, pairs: Sequence[Pair]) -> Question:
        result: Question = await self._call("ask", list(pairs))
        return result

    async def draw(self, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
        response = self._streaming.draw.remote(request)
        try:
            async for event in response:
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise ours(error) from None

    @cached_property
    def _streaming(self) -> DeploymentHandle:
        return self._handle.options(stream=True)

    async def encode(self, png: bytes, format: Format) -> bytes:
        result: bytes = await self._call("encode", png, format)
        return result

    async def samplers(self) -> list[str]:
        result: list[str] = await self._call("samplers")
        return result

    async def apply(self, source: str, after: int, rows: Sequence[IndexRow]) -> int:
        result: int = await self._call("apply", source, after, list(rows))
        return result

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        result: tuple[int, np.ndarray] | None = await self._call("get", id)
        return result

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        result: list[tuple[str, float]] = await self._call("search", key, k, prefix)
        return result


def ours(error: Exception) -> PPDError:
    """What a part raised, or what became of the part."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, PPDError) else PPDError()
    return ActorUnavailable()


def start_ray(scratch: str) -> None:
    """A Ray of this process alone, with everything of it in ``scratch``. Raises ``RuntimeError``.

    Its raylet gives its agents 15 s to start and ends if they take longer, which on a machine that
    is busy just now they do; no setting changes that, so it is started again."""
    for _ in range(START_ATTEMPTS):
        try:
            with _all_or_nothing():
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=scratch,
                    logging_level="ERROR",
                )
            return
        except Exception as error:  # Ray's own is a bare Exception
            reason = str(error)
    raise RuntimeError(f"Ray does not start: {reason}")


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Ray forgets the processes of a start that failed. They end here."""
    before = psutil.Process().children(recursive=True)
    try:
        yield
    except BaseException:
        begun = [p for p in psutil.Process().children(recursive=True) if p not in before]
        for process in begun:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(begun)
        raise


def start(settings: Settings, scratch: str) -> None:
    """Start Ray (a private one, with everything of it in ``scratch``, unless an address is set)
    and the application on it. Raises ``RuntimeError`` when it can't be deployed."""
    with chdir(scratch):  # Ray puts it on its workers' path, before the standard library
        if settings.ray_address:
            ray.init(settings.ray_address)
        else:
            start_ray(scratch)
    logging: Any = {"log_level": "WARNING", "enable_access_log": False}
    address = {"host": settings.host, "port": settings.port}
    serve.start(http_options=address, logging_config=logging)
    serve.run(application(settings), name=APP, route_prefix="/", logging_config=logging)


def stop(settings: Settings) -> None:
    """Finish what is being drawn (at most ``drain_s``), then end."""
    if ray.is_initialized():
        serve.delete(APP) if settings.ray_address else serve.shutdown()
        ray.shutdown()
