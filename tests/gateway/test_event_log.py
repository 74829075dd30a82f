"""What a log keeps, and for whom."""

from __future__ import annotations

import asyncio

from ppd_serve.api.events import Event, Failed, Painted, Preview, Queued, Step
from ppd_serve.errors import Cancelled
from ppd_serve.gateway.event_log import EventListener, EventLog

END = Failed(Cancelled())


async def all_of(listener: EventListener) -> list[tuple[int, Event]]:
    return [tuple(entry) async for entry in listener]


async def test_every_listener_hears_everything_from_where_it_wants() -> None:
    log = EventLog()
    early = log.listen()
    hearing = asyncio.create_task(all_of(early))
    events = [Queued(0), *(Step(0, n, 9) for n in range(1, 10)), Painted(0, "i", 7)]
    for event in events:
        log.append(event)
        await asyncio.sleep(0)
    middle = asyncio.create_task(all_of(log.listen(4)))
    log.append(END)
    numbered = list(enumerate([*events, END], 1))
    assert await hearing == numbered
    assert await middle == numbered[4:]
    for after in range(len(numbered) + 2):
        assert await all_of(log.listen(after)) == numbered[after:]


async def test_only_the_newest_preview_of_an_unfinished_picture_is_kept() -> None:
    log = EventLog()
    for number in range(50):
        log.append(Preview(0, b"%d" % number))
        log.append(Preview(1, b"%d" % number))
    log.append(Painted(1, "i", 7))
    log.append(END)
    assert await all_of(log.listen()) == [
        (99, Preview(0, b"49")), (101, Painted(1, "i", 7)), (102, END),
    ]  # fmt: skip


async def test_numbers_of_the_callers_own() -> None:
    log = EventLog()
    log.append(Painted(0, "i", 7), 2**50)
    log.append(END)
    assert await all_of(log.listen()) == [(2**50, Painted(0, "i", 7)), (2**50 + 1, END)]
    assert await all_of(log.listen(2**50)) == [(2**50 + 1, END)]


def test_it_is_deserted_when_the_last_one_leaves_before_the_end() -> None:
    told: list[str] = []
    log = EventLog(deserted=lambda: told.append("deserted"))
    first, second = log.listen(), log.listen()
    first.close()
    first.close()  # has left already
    assert told == []
    second.close()
    assert told == ["deserted"]
    late = log.listen()
    log.append(END)
    late.close()
    assert told == ["deserted"]
