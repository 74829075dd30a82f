"""All services of one gateway, on one store and three parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ppd_serve.api.auth import Access
from ppd_serve.api.schemas import ReleaseOut
from ppd_serve.api.services import Services
from ppd_serve.gateway.blends import Blends
from ppd_serve.gateway.closing import Closing
from ppd_serve.gateway.drawing import Easel
from ppd_serve.gateway.export import ExportService
from ppd_serve.gateway.feed import Feed
from ppd_serve.gateway.feedback import FeedbackService
from ppd_serve.gateway.full import Full
from ppd_serve.gateway.generations import DrawingService
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.images import ImageService
from ppd_serve.gateway.keys import KnownKeys
from ppd_serve.gateway.ports import DiffuserPort, EncoderPort, IndexPort
from ppd_serve.gateway.preferences import PreferenceService
from ppd_serve.gateway.questions import QuestionService
from ppd_serve.gateway.records import Records
from ppd_serve.gateway.running import Jobs, Tasks, Threads
from ppd_serve.gateway.status import StatusService
from ppd_serve.gateway.taste_codes import TasteCodeService
from ppd_serve.gateway.tastes import Tastes
from ppd_serve.gateway.unread import Unread
from ppd_serve.gateway.users import UserService
from ppd_serve.meters import Meters
from ppd_serve.storage.store import Store

STORE_THREADS = 16
DECODER_THREADS = 2  # a 32 MP picture takes 100 MB while it is looked at


def build_services(
    store: Store,
    encoder: EncoderPort,
    index: IndexPort,
    diffuser: DiffuserPort,
    release: ReleaseOut,
    access: Access,
    encode_wait_s: float,
    drain_s: float,
    lone_diffuser: bool = True,
) -> Services:
    """The store is closed when the services stop: once what is being drawn is finished, or after
    ``drain_s``."""
    db, decoders, tasks = (
        Threads(STORE_THREADS, "store"),
        Threads(DECODER_THREADS, "decode"),
        Tasks(),
    )
    jobs, idempotency_keys = Jobs(), IdempotencyKeys(store, db, tasks)
    space, meters, closing = release.embedding_space, Meters(), Closing(drain_s)
    feed = Feed(store, db, index, space)
    tastes = Tastes(store, db, tasks, jobs, encoder, index, feed, space, encode_wait_s, meters)
    unread = Unread(store, db, tasks, tastes)
    records = Records(store, db, tasks, release.name)
    easel = Easel(
        jobs,
        Blends(store, db, tastes),
        records,
        diffuser,
        release.name,
        meters,
        Full(lone_diffuser),
    )
    preferences = PreferenceService(
        store, db, decoders, tasks, idempotency_keys, tastes, unread, feed, jobs
    )
    status = StatusService(store, db, feed, encoder, index, diffuser, release, meters, closing)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        for loop in (
            status.watch("encoder"),
            status.watch("index"),
            status.watch("diffuser"),
            status.feed(),
            status.stay(),
            status.sweep(),
            unread.rounds(),
        ):
            tasks.start(loop)
        try:
            yield
        finally:
            await closing.drain()
            await tasks.stop()
            db.close()
            decoders.close()
            store.close()

    return Services(
        users=UserService(store, db, tasks, jobs, index, feed, space),
        preferences=preferences,
        questions=QuestionService(
            store,
            db,
            tasks,
            jobs,
            idempotency_keys,
            tastes,
            preferences,
            diffuser,
            release,
            closing,
            meters,
        ),
        feedback=FeedbackService(store, db, tasks, idempotency_keys),
        taste_codes=TasteCodeService(store, db, tasks, jobs, idempotency_keys, space),
        exports=ExportService(store, db),
        images=ImageService(store, db, decoders, tasks, idempotency_keys),
        generations=DrawingService(
            store, db, tasks, idempotency_keys, easel, records, diffuser, release, closing
        ),
        status=status,
        access=access,
        keys=KnownKeys(store, db, tasks),
        running=running(),
        drain=closing.drain,
        meters=meters,
    )
