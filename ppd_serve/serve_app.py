"""The server on Ray Serve: four thin actors around the rooms, and nothing else knows Ray.

    Gateway ──► Encoder     pairs → embedding (VLM, its own thread)
            ├─► UserIndex   embeddings by id, neighbours (disposable)
            └─► Diffuser    picture (the engine's thread)

torch is imported only in the actors that need it, while the others are already up.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ppd_serve.api.app import create_app
from ppd_serve.api.auth import Access
from ppd_serve.api.schemas import ReleaseOut
from ppd_serve.errors import ActorUnavailable, PPDError, ReleaseError, Unavailable
from ppd_serve.gateway.build import build_services
from ppd_serve.gateway.ports import DrawRequest, IndexRow
from ppd_serve.manifest import Manifest, Source, read_manifest
from ppd_serve.preferences.pairs import Pair
from ppd_serve.settings import DiffuserPart, EncoderPart, Part, Settings

APP = "ppd"
OPEN_CALLS = 1000  # the engine's queue is the only queue: nothing waits in Ray's


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
        )
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
    if settings.link_secret is not None:
        return settings.link_secret.get_secret_value().encode()
    path = settings.data / "link_secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with open(descriptor, "wb") as file:
        secret = secrets.token_bytes(32)
        file.write(secret)
    return secret


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

    async def embed(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, str | None]:
        result: tuple[np.ndarray, str | None] = await self._call("embed", list(pairs))
        return result

    async def draw(self, request: DrawRequest) -> list[bytes]:
        result: list[bytes] = await self._call("draw", request)
        return result

    async def samplers(self) -> list[str]:
        result: list[str] = await self._call("samplers")
        return result

    async def apply(self, after: int, rows: Sequence[IndexRow]) -> int:
        result: int = await self._call("apply", after, list(rows))
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


class Encoder:
    """The VLM. One reading at a time, in its own thread."""

    def __init__(self, release: str, part: EncoderPart) -> None:
        import torch

        from ppd_serve.preferences.encoder import Encoder as Reader
        from ppd_serve.release import load_release

        torch.set_num_threads(part.threads)
        found = load_release(release)
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._reader: Reader = found.load_encoder(
            device=part.device, dtype=part.dtype, quantisation=part.quantisation
        )
        if self._reader.space != found.embedding_space:
            raise ReleaseError(
                f"the encoder's embedding space is {self._reader.space}, "
                f"the release's {found.embedding_space}: embeddings of two spaces never mix"
            )
        width, height = found.defaults.sizes[0]
        self._reader.embed([Pair("warm-up", *_two_pictures(width, height))])

    async def embed(self, pairs: list[Pair]) -> tuple[np.ndarray, str | None]:
        loop = asyncio.get_running_loop()
        reading = await loop.run_in_executor(self._thread, self._reader.embed, pairs)
        return reading.embedding, reading.profile

    async def beat(self) -> None:
        """Warm since its constructor returned."""


def _two_pictures(width: int, height: int) -> tuple[bytes, bytes]:
    from ppd_serve.diffusion.picture import encode_picture

    plain = np.zeros((height, width, 3), np.uint8)
    return encode_picture(plain), encode_picture(plain + 255)


class UserIndex:
    """Embeddings by id. Its file is a convenience: whatever is wrong with it, the gateway sends
    what is missing."""

    def __init__(
        self, directory: str, space: str, shape: tuple[int, int], save_seconds: float
    ) -> None:
        from ppd_serve.preferences.index import IndexFileError
        from ppd_serve.preferences.index import UserIndex as Index

        self._directory, self._save_seconds = Path(directory), save_seconds
        self._empty: Callable[[], Index] = lambda: Index(space, *shape)
        self._index, self._saved = self._empty(), 0
        try:
            self._index.load(directory)
            self._saved = self._index.sequence
        except IndexFileError:
            pass
        self._writing = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None

    async def apply(self, after: int, rows: list[IndexRow]) -> int:
        if self._saver is None:
            self._saver = asyncio.create_task(self._keep_saved())
        async with self._writing:
            if after == -1:
                self._index = self._empty()
            elif after != self._index.sequence:
                return self._index.sequence
            for row in rows:
                if row.values is not None:
                    self._index.put(row.id, row.version, row.values)
                elif self._index.delete(row.id):
                    # Who is deleted is deleted from the file, too, and at once.
                    shutil.rmtree(self._directory, ignore_errors=True)
                self._index.sequence = row.sequence
        return self._index.sequence

    async def get(self, id: str) -> tuple[int, np.ndarray] | None:
        return self._index.get(id)

    async def search(self, key: np.ndarray, k: int, prefix: str) -> list[tuple[str, float]]:
        return await asyncio.to_thread(self._index.search, key, k, prefix)

    async def _keep_saved(self) -> None:
        while True:
            await asyncio.sleep(self._save_seconds)
            if self._index.sequence != self._saved:
                async with self._writing:
                    sequence = self._index.sequence
                    await asyncio.to_thread(self._index.save, self._directory)
                    self._saved = sequence


class Diffuser:
    """The engine, in its own thread. PNG is encoded here; bytes travel."""

    def __init__(self, release: str, part: DiffuserPart) -> None:
        import torch

        from ppd_serve.diffusion.engine import Engine
        from ppd_serve.release import load_release

        torch.set_num_threads(part.threads)
        self._release = load_release(release)
        self._release.check()
        backbone = self._release.load_backbone(part.device, getattr(torch, part.dtype))
        shape = self._release.manifest.embedding_shape
        assert shape is not None
        self._engine = Engine(
            backbone,
            self._release.load_adapter(backbone),
            embedding_rows=shape[0],
            max_rows=part.rows,
            queue_limit=part.queue,
        ).start()
        self._engine.submit(self._release.defaults.request("warm-up")).result()

    async def draw(self, request: DrawRequest) -> list[bytes]:
        from ppd_serve.diffusion.request import User

        tickets = self._engine.submit_all(
            [
                self._release.defaults.request(
                    request.prompt,
                    negative_prompt=request.negative_prompt,
                    seed=seed,
                    width=request.width,
                    height=request.height,
                    steps=request.steps,
                    guidance_scale=request.guidance_scale,
                    sampler=request.sampler,
                    preference_scale=request.preference_scale,
                    users=tuple(User(values, weight) for values, weight in request.users),
                )
                for seed in request.seeds
            ]
        )
        try:
            return await asyncio.gather(*map(self._png, tickets))
        finally:
            for ticket in tickets:
                ticket.cancel()  # of no effect on those that are done

    async def _png(self, ticket: Any) -> bytes:
        from ppd_serve.diffusion.picture import encode_picture, parameters

        result = await ticket
        text = parameters(ticket.request, self._release.name)
        return await asyncio.to_thread(encode_picture, result.pixels, "png", text)

    async def samplers(self) -> list[str]:
        return list(self._engine.backbone.samplers)

    async def beat(self) -> None:
        self.check_health()

    def check_health(self) -> None:
        """Ray restarts the actor when this raises."""
        if not self._engine.healthy():
            raise Unavailable("The engine does not move")
