"""The engine over a backbone without weights: queueing, batching, cancelling, failing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppd_serve.diffusion import engine as engines
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.ticket import Progress, Ticket
from ppd_serve.errors import (
    Cancelled,
    GenerationFailed,
    Interrupted,
    InvalidInput,
    QueueFull,
    Unavailable,
)
from tests.diffusion.toy import DEFAULTS, Toy

WAIT = 30


def ask(prompt: str = "a", **chosen: Any) -> GenerationRequest:
    return DEFAULTS.request(prompt, **chosen)


def test_a_picture() -> None:
    with Engine(Toy()) as engine:
        result = engine.submit(ask(seed=3)).result(WAIT)
        assert engine.healthy()
    assert result.pixels.shape == (32, 32, 3) and result.pixels.dtype == np.uint8
    assert result.latents.shape == (3, 4, 4) and result.latents.dtype == np.float32
    assert result.seed == 3
    assert result.timing.queued >= 0 and result.timing.running > 0


def test_rows_share_a_forward_and_guided_rows_take_two_places() -> None:
    toy = Toy()
    engine = Engine(toy)
    tickets = engine.submit_all([ask(), ask("bb", guidance_scale=1.0), ask("ccc", steps=2)])
    with engine:
        for ticket in tickets:
            ticket.result(WAIT)
    assert [shape[0] for shape in toy.forwards] == [5, 5, 3, 3]


def test_a_request_joins_at_the_next_step() -> None:
    toy = Toy()
    engine = Engine(toy)
    first = engine.submit(ask(guidance_scale=1.0))
    late: list[Ticket] = []

    def join(progress: Progress) -> None:
        if progress.step == 1:
            late.append(engine.submit(ask("bb", guidance_scale=1.0)))

    first.on_step(join)
    with engine:
        first.result(WAIT)
        late[0].result(WAIT)
    assert [shape[0] for shape in toy.forwards] == [1, 2, 2, 2, 1]


def test_those_who_come_together_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "COMPANY_S", 3600)
    monkeypatch.setattr(engines, "MOST_COMPANY_S", 3600)
    toy = Toy()
    with Engine(toy, max_rows=2) as engine:  # full with two, so nobody waits for a third
        together = [engine.submit(ask(guidance_scale=1.0)) for _ in range(2)]
        for ticket in together:
            ticket.result(WAIT)
        engine.submit(ask(steps=1, guidance_scale=1.0))  # the end of the engine ends the wait
    assert [shape[0] for shape in toy.forwards] == [2, 2, 2, 2, 1]


def test_company_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody comes, again and again, before the moment is over; each of them leaves at once."""
    monkeypatch.setattr(engines, "COMPANY_S", 3600)
    monkeypatch.setattr(engines, "MOST_COMPANY_S", 0.1)
    with Engine(Toy()) as engine:
        first = engine.submit(ask())
        while not first.done():
            engine.submit(ask()).cancel()
        first.result(WAIT)


def test_sizes_take_turns_by_work() -> None:
    """A latent of 4×8 is twice the work of one of 4×4, however many rows there are of either."""
    toy = Toy()
    engine = Engine(toy)
    engine.submit_all([ask(steps=6)] * 3 + [ask(steps=3, height=64)])
    with engine:
        pass
    assert [shape[-2] for shape in toy.forwards] == [4, 8, 4, 8, 4, 4, 8, 4, 4]


def test_no_more_rows_than_allowed() -> None:
    toy = Toy()
    engine = Engine(toy, max_rows=3)
    engine.submit_all([ask(guidance_scale=1.0)] * 7)
    with engine:
        pass
    assert [shape[0] for shape in toy.forwards] == [3] * 4 + [3] * 4 + [1] * 4


def test_the_queue_is_bounded_and_takes_all_or_none() -> None:
    engine = Engine(Toy(), max_rows=1, queue_limit=1)
    first = engine.submit(ask())
    with pytest.raises(QueueFull) as full:
        engine.submit_all([ask(), ask()])
    assert full.value.retry_after
    second = engine.submit(ask())
    assert (engine.position(first), engine.position(second), engine.queued) == (0, 1, 2)
    with pytest.raises(QueueFull):
        engine.submit(ask())
    with engine:
        first.result(WAIT)
        second.result(WAIT)
    assert engine.position(second) == 0


def test_without_a_queue_free_rows_are_taken() -> None:
    holding, leave = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        holding.set()
        leave.wait(WAIT)

    with Engine(Toy(hold), max_rows=2, queue_limit=0) as engine:
        first = engine.submit(ask())
        assert holding.wait(WAIT)
        second = engine.submit(ask("bb"))  # waits for a step, not for a row
        with pytest.raises(QueueFull):
            engine.submit(ask())
        assert second.cancel()  # its place is free again, and only its place
        third = engine.submit(ask("ccc"))
        with pytest.raises(QueueFull):
            engine.submit(ask())
        leave.set()
        first.result(WAIT)
        third.result(WAIT)
        for ticket in engine.submit_all([ask()] * 2):
            ticket.result(WAIT)


@pytest.mark.parametrize("prompt", ["nan", "raise", "unencodable", "cancelled"])
def test_every_end_frees_its_place(prompt: str) -> None:
    with Engine(Toy(), max_rows=1, queue_limit=0) as engine:
        for _ in range(3):
            ticket = engine.submit(ask(prompt))
            if prompt == "cancelled":
                ticket.cancel()
            ticket._future.exception(WAIT)
        engine.submit(ask()).result(WAIT)


def test_more_than_could_ever_be_taken_is_no_matter_of_waiting() -> None:
    engine = Engine(Toy(), max_rows=2, queue_limit=1)
    with pytest.raises(InvalidInput) as refused:
        engine.submit_all([ask()] * 4)
    assert refused.value.field == "n" and refused.value.retry_after is None
    assert len(engine.submit_all([ask()] * 3)) == 3
    engine.start().stop()


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({"width": 33}, "width"),
        ({"sampler": "magic"}, "sampler"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"users": (User(np.zeros((1, 4), np.float32)),)}, "users"),
    ],
)
def test_refuses_before_queueing(chosen: dict[str, Any], field: str) -> None:
    engine = Engine(Toy())
    with pytest.raises(InvalidInput) as refused:
        engine.submit(ask(**chosen))
    assert refused.value.field == field and engine.queued == 0


@pytest.mark.parametrize("prompt", ["nan", "raise", "unencodable"])
def test_one_row_fails_alone(prompt: str) -> None:
    with Engine(Toy()) as reference:
        expected = reference.submit(ask("good", seed=2)).result(WAIT).latents
    engine = Engine(Toy())
    good, bad, also = engine.submit_all([ask("good", seed=2), ask(prompt), ask("fine")])
    with engine:
        with pytest.raises(GenerationFailed):
            bad.result(WAIT)
        assert np.allclose(good.result(WAIT).latents, expected, atol=1e-5)
        also.result(WAIT)


def test_a_forward_too_large_is_halved() -> None:
    def out_of_memory(x: Any) -> None:
        if len(x) > 4:
            raise MemoryError

    engine = Engine(Toy(out_of_memory))
    tickets = engine.submit_all([ask()] * 5)
    with engine:
        for ticket in tickets:
            ticket.result(WAIT)


def test_cancelled_rows_leave_at_the_next_step() -> None:
    toy = Toy()
    engine = Engine(toy)
    goes, stays = engine.submit_all([ask(guidance_scale=1.0)] * 2)
    goes.on_step(lambda progress: progress.step == 2 and goes.cancel())
    with engine:
        with pytest.raises(Cancelled):
            goes.result(WAIT)
        stays.result(WAIT)
    assert [shape[0] for shape in toy.forwards] == [2, 2, 1, 1]
    assert not stays.cancel() and not goes.cancel()


def test_cancelled_while_waiting_leaves_at_once() -> None:
    toy = Toy()
    engine = Engine(toy)
    ticket = engine.submit(ask())
    assert ticket.cancel() and engine.queued == 0
    with pytest.raises(Cancelled):
        ticket.result(0)
    with engine:
        pass
    assert not toy.forwards


def test_cancelled_at_the_last_step_makes_no_picture() -> None:
    engine = Engine(Toy())
    ticket = engine.submit(ask())
    ticket.on_step(lambda progress: progress.step == progress.steps and ticket.cancel())
    with engine, pytest.raises(Cancelled):
        ticket.result(WAIT)


def test_a_failing_watcher_harms_nobody() -> None:
    engine = Engine(Toy())
    ticket = engine.submit(ask())
    ticket.on_step(lambda _: 1 // 0)
    with engine:
        ticket.result(WAIT)


def test_stopping_drains() -> None:
    engine = Engine(Toy())
    ticket = engine.submit(ask())
    engine.start().stop()
    ticket.result(0)
    with pytest.raises(Unavailable):
        engine.submit(ask())


def test_stopping_at_once_interrupts_rows_and_queue() -> None:
    def stop_meanwhile(_: Any) -> None:
        threading.Thread(target=engine.stop, kwargs={"drain": False}).start()
        with engine._changed:
            engine._changed.wait_for(lambda: engine._stopping, WAIT)

    engine = Engine(Toy(stop_meanwhile), max_rows=1).start()
    for ticket in engine.submit_all([ask()] * 2):
        with pytest.raises(Interrupted):
            ticket.result(WAIT)
    engine.stop()
    assert not engine.healthy()


def test_a_dead_engine_says_so() -> None:
    def die(_: Any) -> None:
        raise SystemExit

    engine = Engine(Toy(die))
    assert not engine.healthy()
    tickets = engine.submit_all([ask()] * 2)
    engine.start()
    for ticket in tickets:
        with pytest.raises(GenerationFailed):
            ticket.result(WAIT)
    engine.stop()
    assert not engine.healthy()
    with pytest.raises(Unavailable):
        engine.submit(ask())


def test_a_death_at_the_door_loses_nobody() -> None:
    engine = Engine(Toy())
    tickets = engine.submit_all([ask(), ask("deadly"), ask("bb")])
    engine.start()
    for ticket in tickets:
        with pytest.raises(GenerationFailed):
            ticket.result(WAIT)
    engine.stop()


def test_limits_change_while_it_runs() -> None:
    toy = Toy()
    engine = Engine(toy, max_rows=4, queue_limit=1)
    tickets = engine.submit_all([ask(guidance_scale=1.0)] * 4)
    engine.tick()
    engine.reconfigure(max_rows=2)
    engine.tick()
    engine.tick()
    assert [shape[0] for shape in toy.forwards] == [4, 2, 2], "they take turns in smaller forwards"
    with pytest.raises(QueueFull):
        engine.submit(ask())
    engine.reconfigure(max_rows=5, queue_limit=0)
    tickets.append(engine.submit(ask(guidance_scale=1.0)))
    with pytest.raises(QueueFull):
        engine.submit(ask())
    engine.tick()
    assert toy.forwards[-1][0] == 5
    with engine:
        for ticket in tickets:
            ticket.result(WAIT)


@pytest.mark.parametrize(("limit", "value"), [("max_rows", 0), ("queue_limit", -1)])
def test_refuses_limits_that_mean_nothing(limit: str, value: int) -> None:
    engine = Engine(Toy())
    with pytest.raises(InvalidInput) as refused:
        engine.reconfigure(**{limit: value})
    assert refused.value.field == limit and (engine.max_rows, engine.queue_limit) == (16, 256)


def test_stats_say_what_is_going_on() -> None:
    engine = Engine(Toy(), max_rows=2)
    idle = engine.stats()
    assert (idle.queued, idle.active, idle.ticks, idle.rows, idle.seconds) == (0, 0, 0, 0, 0)
    engine.submit_all([ask(steps=2)] * 3)
    engine.tick()
    busy = engine.stats()
    assert (busy.queued, busy.active, busy.ticks, busy.rows, busy.batch_limit) == (1, 2, 1, 2, 2)
    assert busy.seconds > 0
    with engine:
        pass
    done = engine.stats()
    assert (done.queued, done.active, done.rows) == (0, 0, 1) and done.ticks > 1


def test_a_silent_engine_is_not_healthy() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        entered.set()
        leave.wait(WAIT)

    with Engine(Toy(hold)) as engine:
        ticket = engine.submit(ask())
        entered.wait(WAIT)
        assert engine.healthy(WAIT) and not engine.healthy(silence_s=0)
        leave.set()
        ticket.result(WAIT)


async def test_awaiting_and_watching() -> None:
    engine = Engine(Toy())
    good, bad = engine.submit_all([ask(), ask("nan")])

    async def watch(ticket: Ticket) -> list[int]:
        return [progress.step async for progress in ticket]

    watching = asyncio.gather(watch(good), watch(good), watch(bad))
    await asyncio.sleep(0)  # let the watchers subscribe
    with engine:
        assert (await good).latents.shape == (3, 4, 4)
        with pytest.raises(GenerationFailed):
            await bad
        assert await watching == [[1, 2, 3, 4], [1, 2, 3, 4], []]
    assert await watch(good) == [], "a late watcher of a finished request ends at once"


async def test_a_cancelled_task_leaves_the_request_to_others() -> None:
    engine = Engine(Toy())
    ticket = engine.submit(ask())

    async def wait() -> Any:
        return await ticket

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with engine:
        await ticket


Action = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(["a", "bbb", "nan", "raise", "unencodable"]),
        st.sampled_from(["ddim", "dpmpp_2m", "euler_ancestral"]),
        st.integers(1, 5),
        st.sampled_from([32, 64]),
        st.sampled_from([1.0, 3.0]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("cancel at step"), st.integers(0, 30), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.integers(0, 30)),
)


def lone(request: GenerationRequest) -> np.ndarray:
    with Engine(Toy()) as engine:
        return engine.submit(request).result(WAIT).latents


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(Action, min_size=1, max_size=25), max_rows=st.integers(1, 5))
def test_whatever_happens_every_request_ends_as_it_should(
    actions: list[tuple[Any, ...]], max_rows: int
) -> None:
    """Any order of submitting, cancelling and failing: good rows come out as alone, the others
    with their own error, nobody waits forever and nothing is left behind."""
    tickets: list[Ticket] = []
    cancelled: set[Ticket] = set()
    engine = Engine(Toy(), max_rows=max_rows, queue_limit=8)

    def cancel(ticket: Ticket) -> None:
        if ticket.cancel():
            cancelled.add(ticket)

    with engine:
        for seed, action in enumerate(actions):
            if action[0] == "submit":
                _, prompt, sampler, steps, height, guidance = action
                request = ask(
                    prompt,
                    sampler=sampler,
                    steps=steps,
                    height=height,
                    guidance_scale=guidance,
                    seed=seed,
                )
                try:
                    tickets.append(engine.submit(request))
                except QueueFull:
                    assert engine.queue_limit == 8
                continue
            if not tickets:
                continue
            ticket = tickets[action[1] % len(tickets)]
            if action[0] == "cancel":
                cancel(ticket)
            elif action[0] == "cancel at step":
                at = action[2]
                ticket.on_step(lambda p, at=at, t=ticket: cancel(t) if p.step == at else None)
            else:
                ticket._future.exception(WAIT)

    assert (engine.queued, engine.active) == (0, 0)
    for ticket in tickets:
        assert ticket.done()
        error = ticket._future.exception(0)
        if ticket in cancelled:
            assert isinstance(error, Cancelled)
        elif ticket.request.prompt in ("nan", "raise", "unencodable"):
            assert isinstance(error, GenerationFailed)
        else:
            assert np.allclose(ticket.result(0).latents, lone(ticket.request), atol=1e-4)
