"""Questions: drawn together from one noise, asked on either side, answered once."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ppd_serve.api.generation_schemas import GenerateIn
from ppd_serve.api.loop_schemas import FeedbackIn, QuestionIn
from ppd_serve.api.schemas import EmbeddingState
from ppd_serve.api.services import Asked, Services
from ppd_serve.errors import (
    ActorUnavailable,
    Conflict,
    EncoderUnavailable,
    GenerationFailed,
    InvalidInput,
    NotFound,
    QueueFull,
    Unavailable,
    Unsupported,
)
from ppd_serve.gateway import questions
from ppd_serve.gateway.users import ENOUGH_BITS
from ppd_serve.preferences.pairs import Pair
from ppd_serve.storage.values import Idempotency
from tests.gateway.conftest import RELEASE, House, choices
from tests.gateway.doubles import LEFT, RIGHT, SPACE, embedding

P = "default"
KEY = Idempotency("POST /users/ann/questions", "k", "hash")


async def ask(server: Services, prompt: str | None = None, key: Idempotency | None = None) -> Asked:
    return await server.questions.ask(P, "ann", QuestionIn(prompt=prompt), key)


async def test_both_are_drawn_from_one_noise_in_one_go(server: Services, house: House) -> None:
    asked = await ask(server, "a boat")
    (request,) = house.diffuser.asked
    assert request.prompt == asked.prompt == "a boat"
    assert len(request.seeds) == 2 and len(set(request.seeds)) == 1
    sides = [request.users_of(image) for image in range(2)]
    assert [[weight for _, weight in users] for users in sides] == [[1.0], [1.0]]
    assert request.preference_scale == 1.5  # the question's own
    for image_id in (asked.left, asked.right):
        assert (await server.images.read(P, image_id))[1] == "image/png"
    assert await server.images.read(P, asked.left) != await server.images.read(P, asked.right)
    assert house.store.get_question(P, "ann", asked.question_id).bits == 0.25
    assert (await server.users.get(P, "ann")).pairs_total == 0


@pytest.mark.parametrize("turned", [False, True])
async def test_sides_are_what_was_drawn_there(
    server: Services, house: House, monkeypatch: pytest.MonkeyPatch, turned: bool
) -> None:
    monkeypatch.setattr(questions.secrets, "randbelow", lambda below: int(not turned))
    asked = await ask(server)
    request = house.diffuser.asked[0]
    drawn_with = [request.users_of(image)[0][0] for image in range(2)]
    np.testing.assert_array_equal(drawn_with, [RIGHT, LEFT] if turned else [LEFT, RIGHT])
    draw = house.diffuser.draw(request)
    pictures = {event.image: event.png async for event in draw if hasattr(event, "image")}  # type: ignore[union-attr]
    assert [(await server.images.read(P, side))[0] for side in (asked.left, asked.right)] == [
        pictures[0],
        pictures[1],
    ]


def test_each_side_gets_either() -> None:
    asked = questions.Question(LEFT, RIGHT, 0.5)
    # One side only in 64 tosses: less likely than 1 in 10^19.
    assert {questions.shuffled(asked).left is LEFT for _ in range(64)} == {False, True}
    assert {questions.shuffled(asked).right is RIGHT for _ in range(64)} == {False, True}


async def test_prompts_take_turns(server: Services) -> None:
    prompts = [(await ask(server)).prompt for _ in range(4)]
    assert prompts == [*RELEASE.example_prompts, RELEASE.example_prompts[0]]


async def test_a_release_without_prompts_needs_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gateway.conftest.RELEASE.example_prompts", [])
    server = house.open()
    async with server.running:
        with pytest.raises(InvalidInput) as caught:
            await ask(server)
        assert caught.value.field == "prompt"
        assert await ask(server, "a boat")


async def test_an_answer_is_read_like_any_pair(server: Services, house: House) -> None:
    asked = await ask(server, "a boat")
    answer = await server.questions.answer(P, "ann", asked.question_id, "right")
    assert answer.pairs_total == 1 and answer.profile == "likes 1"
    current = EmbeddingState(space=SPACE, version=1, pairs_used=1, status="current")
    assert answer.embedding == current
    (pair,) = (await server.preferences.page(P, "ann", None, 10)).pairs
    assert [pair.pair_id] == answer.pair_ids
    assert (pair.preferred.image_id, pair.rejected.image_id) == (asked.right, asked.left)
    values = (await server.users.embedding(P, "ann", None)).values
    np.testing.assert_array_equal(values, embedding([Pair("a boat", b"", b"")]))
    await ask(server)
    assert house.encoder.asked == [(0, 0), (1, 0)]  # the next question knows the answer

    house.encoder.error = ActorUnavailable()  # nothing has to be read again
    assert await server.questions.answer(P, "ann", asked.question_id, "right") == answer
    with pytest.raises(Conflict):
        await server.questions.answer(P, "ann", asked.question_id, "left")


async def test_neither_is_an_answer(server: Services) -> None:
    asked = await ask(server)
    for _ in range(2):
        answer = await server.questions.answer(P, "ann", asked.question_id, "neither")
        assert (answer.pair_ids, answer.pairs_total, answer.embedding.version) == ([], 0, 0)


async def test_what_was_asked_since_the_last_pair_is_known(server: Services, house: House) -> None:
    for choice in ("neither", "left", "neither"):
        asked = await ask(server)
        await server.questions.answer(P, "ann", asked.question_id, choice)
    await ask(server)  # and is not answered
    await ask(server)
    assert house.encoder.asked == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


async def test_an_answer_is_committed_though_the_encoder_is_away(
    server: Services, house: House
) -> None:
    asked = await ask(server)
    house.encoder.error = ActorUnavailable()
    answer = await server.questions.answer(P, "ann", asked.question_id, "left")
    assert (answer.pairs_total, answer.embedding.status) == (1, "pending")


@pytest.mark.parametrize(
    ("error", "told"),
    [(Unsupported("why"), Unsupported), (ActorUnavailable(), EncoderUnavailable)],
)
async def test_without_a_question_nothing_is_drawn(
    server: Services, house: House, error: Exception, told: type[Exception]
) -> None:
    house.encoder.error = error
    with pytest.raises(told):
        await ask(server)
    assert house.diffuser.asked == []


@pytest.mark.parametrize("error", [QueueFull(), GenerationFailed()])
async def test_what_cannot_be_drawn_is_not_asked(
    server: Services, house: House, error: Exception
) -> None:
    house.diffuser.late_error = error
    for key in (None, KEY):
        with pytest.raises(type(error)):
            await ask(server, key=key)
    assert house.store.questions_total(P, "ann") == 0
    house.diffuser.late_error = None
    assert await ask(server, key=KEY)  # which is free again


async def test_a_key_draws_once(server: Services, house: House) -> None:
    first = await ask(server, key=KEY)
    assert await ask(server, key=KEY) == first
    assert len(house.diffuser.asked) == 1


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_caller_that_leaves_stops_it_unless_there_is_a_key(
    server: Services, house: House, key: Idempotency | None
) -> None:
    house.diffuser.gate.clear()
    call = asyncio.create_task(ask(server, key=key))
    await house.diffuser.began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    house.diffuser.gate.set()
    if key is None:
        assert house.diffuser.cancelled == 1
        assert house.store.questions_total(P, "ann") == 0
        return
    async with asyncio.timeout(20):
        while not house.store.questions_total(P, "ann"):
            await asyncio.sleep(0.01)
    assert house.diffuser.cancelled == 0


async def test_a_deleted_user_is_asked_nothing(server: Services, house: House) -> None:
    house.diffuser.gate.clear()
    call = asyncio.create_task(ask(server))
    await house.diffuser.began.wait()
    await server.users.delete(P, "ann")
    with pytest.raises(NotFound):
        await call
    assert house.diffuser.cancelled == 1
    with pytest.raises(NotFound):
        await server.users.get(P, "ann")


async def test_ask_more_goes_by_what_an_answer_would_tell(server: Services, house: House) -> None:
    async def more(*prompts: str, bits: float | None) -> bool:
        house.encoder.bits = bits
        await server.preferences.add(P, "ann", choices(*prompts), None)
        return (await server.users.get(P, "ann")).ask_more

    assert await more("a", bits=None)  # by their number
    assert not await more("b", bits=ENOUGH_BITS / 2)
    assert not await more("c", "d", bits=None)
    assert await more("e", bits=ENOUGH_BITS * 2)
    house.encoder.error = ActorUnavailable()
    assert not await more("f", bits=1.0)  # not read yet: by their number again


async def test_feedback(server: Services) -> None:
    drawn = await server.generations.draw(P, GenerateIn(prompt="a boat"), None)
    body = FeedbackIn(image_id=drawn.images[0].image_id, liked=True)
    first = await server.feedback.put(P, "ann", body, KEY)
    assert (first.image_id, first.liked) == (body.image_id, True)
    changed = await server.feedback.put(P, "ann", body.model_copy(update={"liked": False}), None)
    assert (changed.feedback_id, changed.liked) == (first.feedback_id, False)
    assert await server.feedback.put(P, "ann", body, KEY) == first  # what it said the first time
    with pytest.raises(Conflict):
        await server.images.delete(P, body.image_id)
    for _ in range(2):
        await server.feedback.delete(P, "ann", first.feedback_id)
    await server.images.delete(P, body.image_id)


async def test_a_stopping_server_asks_nothing(server: Services) -> None:
    await server.drain()
    with pytest.raises(Unavailable):
        await ask(server, "a boat")
