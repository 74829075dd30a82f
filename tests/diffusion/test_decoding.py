"""Decoding between steps: nobody waits for all of it, nobody fails for another, nothing is held."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.ticket import Progress
from ppd_serve.diffusion.unet_backbone import as_bytes
from ppd_serve.errors import Cancelled, GenerationFailed
from tests.diffusion.toy import DEFAULTS, Toy

WAIT = 30


def ask(prompt: str = "a", **chosen: Any) -> Any:
    return DEFAULTS.request(prompt, **{"guidance_scale": 1.0} | chosen)


class Diary(Toy):
    """Writes down forwards (rows) and decodes (minus rows) in order; decodes no loud latents."""

    def __init__(self, loud: float = np.inf) -> None:
        super().__init__(lambda x: self.events.append(len(x)))
        self.events: list[int] = []
        self.loud = loud

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        self.events.append(-len(latents_BCHW))
        if latents_BCHW.abs().amax() > self.loud:
            raise RuntimeError("too loud")
        return super().decode(latents_BCHW)


def test_a_picture_is_decoded_in_the_tick_of_its_last_step() -> None:
    toy = Diary()
    with Engine(toy) as engine:
        engine.submit(ask(steps=2)).result(WAIT)
    assert toy.events == [1, 1, -1]


def test_a_newcomer_does_not_wait_for_all_of_them() -> None:
    toy = Diary()
    engine = Engine(toy)
    many = engine.submit_all([ask(steps=2) for _ in range(8)])
    late: list[Any] = []

    def join(progress: Progress) -> None:
        if progress.step == progress.steps:
            late.append(engine.submit(ask(steps=4)))

    many[0].on_step(join)
    with engine:
        for ticket in many:
            ticket.result(WAIT)
        late[0].result(WAIT)
    assert toy.events == [8, 8, -4, 1, -2, 1, -1, 1, -1, 1, -1]


def test_finished_rows_have_left_their_places() -> None:
    """Two places, two finished: whoever waits is admitted while they are still to be decoded."""
    toy = Diary()
    engine = Engine(toy, max_rows=2)
    tickets = engine.submit_all([ask(steps=1) for _ in range(6)])
    with engine:
        for ticket in tickets:
            ticket.result(WAIT)
    assert toy.events == [2, -1, 2, -2, 2, -2, -1]


def test_sizes_are_decoded_apart() -> None:
    toy = Diary()
    engine = Engine(toy)
    tickets = engine.submit_all([ask(steps=1, height=h) for h in (32, 64, 32, 64)])
    with engine:
        for ticket in tickets:
            ticket.result(WAIT)
    assert {shape[1:] for shape in toy.decoded} == {(3, 4, 4), (3, 8, 4)}
    assert sum(shape[0] for shape in toy.decoded) == 4


def test_one_that_cannot_be_decoded_fails_alone() -> None:
    engine = Engine(Toy())
    wanted = [ask(steps=1, seed=seed) for seed in range(8)]
    with engine:
        made = [ticket.result(WAIT) for ticket in engine.submit_all(wanted)]
    loudest = [float(np.abs(result.latents).max()) for result in made]
    bad = int(np.argmax(loudest))
    broken = Engine(Diary(loud=sorted(loudest)[-2]))
    tickets = broken.submit_all(wanted)
    with broken:
        for i, (ticket, expected) in enumerate(zip(tickets, made, strict=True)):
            if i == bad:
                with pytest.raises(GenerationFailed):
                    ticket.result(WAIT)
            else:
                assert np.array_equal(ticket.result(WAIT).pixels, expected.pixels)


def test_cancelled_before_its_picture_is_not_decoded() -> None:
    toy = Diary()
    engine = Engine(toy)
    tickets = engine.submit_all([ask(steps=1) for _ in range(4)])
    engine.tick()
    assert engine.active == 2 and tickets[0].done()
    assert tickets[3].cancel()
    with engine:
        with pytest.raises(Cancelled):
            tickets[3].result(WAIT)
        tickets[2].result(WAIT)
    assert toy.events == [4, -2, -1] and engine.active == 0


def test_stopping_at_once_interrupts_what_waits_for_decoding() -> None:
    engine = Engine(Diary())
    tickets = engine.submit_all([ask(steps=1) for _ in range(4)])
    engine.tick()
    engine.stop(drain=False)
    assert all(ticket.done() for ticket in tickets) and engine.active == 0


class Crammed(Toy):
    """Finds memory for one picture, and only where nothing of another decode is left."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[weakref.ref[Tensor]] = []

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        activations = latents_BCHW.clone()
        left = sum(held() is not None for held in self.held)
        self.held.append(weakref.ref(activations))
        if left or len(activations) > 1:
            raise torch.OutOfMemoryError(f"CUDA out of memory beside {left}")
        return super().decode(activations)


def test_a_decode_without_memory_lets_go_of_it_before_its_halves_are_tried() -> None:
    with Engine(Crammed()) as engine:
        tickets = engine.submit_all([ask(steps=1) for _ in range(16)])
        assert all(ticket.result(WAIT).pixels.any() for ticket in tickets)


def test_a_picture_that_is_not_finite_is_an_error_and_not_black() -> None:
    pixels = torch.full((1, 3, 2, 2), 0.5)
    assert (as_bytes(pixels) == 128).all()
    pixels[0, 1, 1, 1] = torch.nan
    with pytest.raises(GenerationFailed, match="not finite"):
        as_bytes(pixels)


@pytest.mark.parametrize("place", ["forward", "decode"])
def test_a_gpu_that_is_lost_ends_the_engine_and_not_every_request_for_ever(place: str) -> None:
    """Whoever started it sees that it is not healthy, and starts another process."""

    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    toy = Toy(lost) if place == "forward" else Toy()
    if place == "decode":
        toy.decode = lost  # type: ignore[method-assign, assignment]
    with Engine(toy) as engine:
        with pytest.raises(GenerationFailed, match="died"):
            engine.submit(ask(steps=1)).result(WAIT)
        engine._thread.join(WAIT)
        assert not engine.healthy()
