"""Questions: what would tell most of a taste is drawn, shown, and its answer taken as a pair."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import asdict, replace

from ppd_serve.api.loop_schemas import QuestionIn
from ppd_serve.api.schemas import PreferencesOut, ReleaseOut
from ppd_serve.api.services import Asked
from ppd_serve.api.usage import Slot
from ppd_serve.errors import Interrupted, InvalidInput
from ppd_serve.gateway.closing import Closing
from ppd_serve.gateway.idempotency import IdempotencyKeys
from ppd_serve.gateway.ports import DiffuserPort, DrawRequest, Finished, Question
from ppd_serve.gateway.preferences import PreferenceService
from ppd_serve.gateway.records import SEEDS
from ppd_serve.gateway.running import Job, Jobs, Tasks, Threads
from ppd_serve.gateway.tastes import Tastes
from ppd_serve.meters import Meters
from ppd_serve.storage.store import Choice, Idempotency, LoadedPairs, NewImage, Store


class QuestionService:
    def __init__(
        self,
        store: Store,
        db: Threads,
        tasks: Tasks,
        jobs: Jobs,
        idempotency_keys: IdempotencyKeys,
        tastes: Tastes,
        preferences: PreferenceService,
        diffuser: DiffuserPort,
        release: ReleaseOut,
        closing: Closing,
        meters: Meters,
    ) -> None:
        self._store, self._db, self._tasks, self._jobs = store, db, tasks, jobs
        self._idempotency, self._tastes, self._preferences = idempotency_keys, tastes, preferences
        self._diffuser, self._release = diffuser, release
        self._closing, self._meters = closing, meters

    async def ask(
        self,
        project: str,
        user_id: str,
        body: QuestionIn,
        idempotency: Idempotency | None,
        slot: Slot | None = None,
    ) -> Asked:
        if idempotency is None:
            work = self._tasks.start(self._ask(project, user_id, body))
        else:
            work = self._tasks.start(self._ask_once(project, user_id, body, idempotency))
        self._closing.add(work)
        slot = slot or Slot()
        slot.hold()
        work.add_done_callback(lambda _: slot.release())
        try:
            return await (work if idempotency is None else asyncio.shield(work))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise  # who leaves stops it, unless there is a key
            raise Interrupted from None

    async def _ask_once(
        self, project: str, user_id: str, body: QuestionIn, idempotency: Idempotency
    ) -> Asked:
        async def ask() -> dict[str, str]:
            return asdict(await self._ask(project, user_id, body))

        return Asked(**await self._idempotency.once(project, idempotency, ask, [user_id]))

    async def _ask(self, project: str, user_id: str, body: QuestionIn) -> Asked:
        self._closing.check()
        await self._db(self._store.put_user, project, user_id)
        loaded = await self._db(self._store.load_pairs, project, user_id)
        prompt = body.prompt or await self._next_prompt(project, user_id)
        job = Job()
        with self._jobs.running(job, project, {user_id: loaded.incarnation}):
            return await job.run(self._make(project, user_id, loaded, prompt))

    async def _make(self, project: str, user_id: str, loaded: LoadedPairs, prompt: str) -> Asked:
        asked = await self._db(self._store.questions_since_pair, project, user_id)
        question = shuffled(await self._tastes.ask(loaded.pairs, asked))
        left, right = await self._draw(prompt, question)
        kept = await self._db(
            self._store.add_question, project, user_id, loaded.incarnation, loaded.version, prompt,
            left, right, question.bits,
        )  # fmt: skip
        return Asked(kept.question_id, prompt, kept.left_image_id, kept.right_image_id)

    async def _next_prompt(self, project: str, user_id: str) -> str:
        prompts = self._release.example_prompts
        if not prompts:
            raise InvalidInput("This release has no example prompts: give one", field="prompt")
        asked = await self._db(self._store.questions_total, project, user_id)
        return prompts[asked % len(prompts)]

    async def _draw(self, prompt: str, question: Question) -> tuple[NewImage, NewImage]:
        """From the same noise, so that nothing but the taste sets them apart; taken together by the
        engine, or not at all."""
        width, height = self._release.sizes[0]
        request = DrawRequest(
            prompt=prompt,
            negative_prompt="",
            seeds=[secrets.randbelow(SEEDS)] * 2,
            width=width,
            height=height,
            steps=None,
            guidance_scale=None,
            sampler=None,
            preference_scale=question.scale,
            users=[],
            own_users=[[(question.left, 1.0)], [(question.right, 1.0)]],
        )
        pictures: dict[int, NewImage] = {}
        began, state = time.monotonic(), "refused"
        events = self._diffuser.draw(request)
        try:
            async for event in events:
                state = "failed"  # unless it goes on: the engine has it
                if isinstance(event, Finished):
                    pictures[event.image] = NewImage(event.png, "image/png", width, height)
            state = "done"
        except asyncio.CancelledError:
            state = "cancelled"
            raise
        finally:
            await events.aclose()
            self._meters.generations.labels(state).observe(time.monotonic() - began)
        return pictures[0], pictures[1]

    async def answer(
        self, project: str, user_id: str, question_id: str, choice: Choice
    ) -> PreferencesOut:
        return await self._tasks.run(self._answer(project, user_id, question_id, choice))

    async def _answer(
        self, project: str, user_id: str, question_id: str, choice: Choice
    ) -> PreferencesOut:
        answered = await self._db(
            self._store.answer_question, project, user_id, question_id, choice
        )
        return await self._preferences.answer(project, answered)


def shuffled(question: Question) -> Question:
    """Left and right change places at random, so that who always takes one side says nothing."""
    if secrets.randbelow(2):
        return question
    return replace(question, left=question.right, right=question.left)
