"""What a diffuser has just refused is refused without it; then it is asked again."""

from __future__ import annotations

import pytest

from ppd_serve.api.services import Services
from ppd_serve.errors import Cancelled, QueueFull
from ppd_serve.gateway.full import SECONDS, Full
from tests.gateway.conftest import House
from tests.gateway.test_streams import KEY, TWO, P


def refused(full: Full, pictures: int) -> None:
    with pytest.raises(QueueFull), full.learning(pictures):
        raise QueueFull("12 pictures are waiting", retry_after=7)


def test_only_a_moment_and_only_as_many() -> None:
    now = 100.0
    full = Full(clock=lambda: now)
    full.check(1)
    refused(full, 4)
    full.check(3)  # there may be room for fewer
    for pictures in (4, 5):
        with pytest.raises(QueueFull, match="12 pictures are waiting") as caught:
            full.check(pictures)
        assert caught.value.retry_after == 7
    now += SECONDS
    full.check(5)


def test_other_failures_say_nothing_of_the_queue() -> None:
    full = Full(clock=lambda: 0.0)
    with pytest.raises(Cancelled), full.learning(1):
        raise Cancelled
    full.check(1)


def test_of_several_diffusers_one_says_nothing_of_the_others() -> None:
    full = Full(lone=False, clock=lambda: 0.0)
    refused(full, 4)
    full.check(4)


async def test_a_full_diffuser_is_not_asked_again_at_once(server: Services, house: House) -> None:
    house.diffuser.error = QueueFull(retry_after=3)
    for _ in range(5):
        with pytest.raises(QueueFull) as caught:
            await server.generations.draw(P, TWO, None)
        assert caught.value.retry_after == 3
    assert len(house.diffuser.asked) == 1


async def test_what_was_drawn_for_a_key_is_told_though_the_queue_is_full(
    server: Services, house: House
) -> None:
    drawn = await server.generations.draw(P, TWO, KEY)
    house.diffuser.error = QueueFull()
    with pytest.raises(QueueFull):
        await server.generations.draw(P, TWO, None)
    assert (await server.generations.draw(P, TWO, KEY)).id == drawn.id
