"""A picture in several stages, by a backbone whose mathematics can be followed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppd_serve.diffusion.backbone import Text
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest
from ppd_serve.diffusion.ticket import Progress, Ticket
from ppd_serve.errors import Cancelled, GenerationFailed
from tests.diffusion.toy import DEFAULTS, Toy

LATER, STEPS = 3, DEFAULTS.steps


class Second(Toy):
    """Of the same latent shape as the first, told of its mean; a mean of 0 it cannot begin with."""

    def asked(self, request: GenerationRequest) -> GenerationRequest:
        return replace(
            request, sampler="euler_ancestral", steps=LATER, guidance_scale=1.5, users=()
        )

    def told(self, text: Text, latent_BCHW: Tensor) -> Text:
        if text["states"].isneginf().any():
            raise RuntimeError("nothing to begin with")
        return {"states": text["states"], "mean": latent_BCHW.mean((1, 2, 3), keepdim=True)}

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        return super().denoise(x_BCHW + 5 * text["mean"], timesteps_B, text)


class TwoStages(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.second = Second()
        self.later: Any = (self.second,)

    def encode(self, prompt: str) -> Text:
        if prompt == "unsuited":
            return {"states": torch.full((1, 1, 1), -torch.inf)}
        return super().encode(prompt)


def wanted(i: int, **chosen: Any) -> GenerationRequest:
    return DEFAULTS.request("a" * (i + 1), seed=i, **chosen)


def finish(engine: Engine, ticks: int = 100) -> None:
    for _ in range(ticks):
        engine.tick()


def alone(request: GenerationRequest) -> np.ndarray:
    engine = Engine(TwoStages())
    ticket = engine.submit(request)
    finish(engine)
    return ticket.result(0).latents


def test_goes_through_both_and_counts_all_steps() -> None:
    backbone = TwoStages()
    engine, seen = Engine(backbone), list[Progress]()
    ticket = engine.submit(wanted(0, preview_every=2))
    ticket.on_step(seen.append)
    finish(engine)
    assert [(p.step, p.steps) for p in seen] == [(i + 1, STEPS + LATER) for i in range(7)]
    assert [p.step for p in seen if p.preview is not None] == [STEPS + 2], "of the last"
    assert backbone.forwards == [(2, 3, 4, 4)] * STEPS, "guided by the request"
    assert backbone.second.forwards == [(2, 3, 4, 4)] * LATER, "guided by its own"
    assert backbone.previewed == [1] and backbone.decoded == [(1, 3, 4, 4)]
    assert engine.active == 0 and ticket.result(0).latents.std() > 0.01


def test_the_second_begins_from_noise_of_the_row_s_own_told_of_its_latent() -> None:
    once, again = alone(wanted(1)), alone(wanted(1))
    assert np.array_equal(once, again)
    # One more step changes the latent of the first stage alone; other noise changes both.
    for other in (wanted(1, steps=STEPS + 1), replace(wanted(1), seed=9)):
        assert np.abs(alone(other) - once).max() > 1e-3


@pytest.mark.parametrize("joins_at", range(STEPS + LATER + 1))
def test_rows_of_both_stages_are_in_flight_and_do_not_meet(joins_at: int) -> None:
    backbone = TwoStages()
    engine, progress = Engine(backbone), dict[int, int]()
    tickets = list[Ticket]()

    def join(first: int, n: int) -> None:
        for i in range(first, first + n):
            tickets.append(engine.submit(wanted(i)))
            tickets[-1].on_step(lambda p, i=i: progress.__setitem__(i, p.step))

    join(0, 2)
    finish(engine, joins_at)
    assert progress.get(0, 0) == joins_at
    join(2, 3)
    finish(engine, 2)
    if joins_at in range(STEPS, STEPS + LATER - 1):
        assert progress[0] > STEPS and progress[2] > 0, "both stages, in turn"
    finish(engine)
    for stage, steps in ((backbone, STEPS), (backbone.second, LATER)):
        assert sum(shape[0] for shape in stage.forwards) == 5 * 2 * steps
    for i, ticket in enumerate(tickets):
        assert np.allclose(ticket.result(0).latents, alone(wanted(i)), atol=1e-5)


def test_stages_of_a_picture_are_owed_the_same_work() -> None:
    """However long rows of one stage keep coming, those of the other move on in turn."""
    backbone = TwoStages()
    engine = Engine(backbone, max_rows=2)
    first = engine.submit(wanted(0))
    finish(engine, STEPS)
    engine.submit(wanted(1, steps=100))
    steps = list[int]()
    first.on_step(lambda p: steps.append(engine.stats().ticks))
    finish(engine, 2 * LATER + 1)
    assert len(steps) == LATER and max(b - a for a, b in pairwise(steps)) <= 2


def test_leaves_in_the_second_stage_when_cancelled() -> None:
    engine = Engine(TwoStages())
    leaves, stays = engine.submit_all([wanted(0), wanted(1)])
    finish(engine, STEPS + 1)
    assert leaves.cancel() and engine.active == 2
    finish(engine, 1)
    assert engine.active == 1
    with pytest.raises(Cancelled):
        leaves.result(0)
    finish(engine)
    assert np.allclose(stays.result(0).latents, alone(wanted(1)), atol=1e-5)
    assert engine.active == 0


def test_who_cannot_begin_the_second_fails_alone() -> None:
    engine = Engine(TwoStages())
    fails, stays = engine.submit_all([DEFAULTS.request("unsuited"), wanted(1)])
    finish(engine)
    with pytest.raises(GenerationFailed):
        fails.result(0)
    assert np.allclose(stays.result(0).latents, alone(wanted(1)), atol=1e-5)
    assert engine.active == 0 and engine.submit(wanted(2))
