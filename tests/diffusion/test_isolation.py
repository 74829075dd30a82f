"""The most important test of the repo: what is made for one user owes nothing to the neighbours.

Pictures of different users, of blends, of nobody, with different prompts, sizes, scales, steps and
samplers are in flight together, joining and leaving at different steps; each must come out as it
does alone. The check itself is checked: it must fail on planted leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppd_serve.diffusion import batch, lanes, rows
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import GenerationRequest, User
from ppd_serve.diffusion.ticket import Progress, Ticket
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release
from tests.tiny_release import EMBEDDING_DIM, EMBEDDING_ROWS

TOLERANCE = 1e-4


def embedding(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((EMBEDDING_ROWS, EMBEDDING_DIM)).astype(np.float32)


A, B, C = embedding(1), embedding(2), embedding(3)
CHOICES: list[dict[str, Any]] = [
    {},
    {"users": (User(A),)},
    {"users": (User(B),)},
    {"users": (User(C),), "preference_scale": -0.7, "seed": 9},
    {"users": (User(A, 0.5), User(B, 0.5))},
    {"users": (User(A, 0.3), User(B, -0.5), User(C, 1.5), User(B, 0.1)), "sampler": "euler"},
    {"users": (User(A),), "preference_scale": 0.0},
    {"users": (User(A),), "steps": 7, "sampler": "dpmpp_2m", "guidance_scale": 8.0},
    {"users": (User(B),), "steps": 3, "sampler": "euler_ancestral", "guidance_rescale": 0.0},
    {"users": ((B, 1.0),), "width": 32, "height": 64, "negative_prompt": "blurred"},
    {"users": (User(C),), "steps": 6, "sampler": "ddpm", "guidance_scale": 1.0},
    {"users": (User(B),), "steps": 5, "guidance_interval": (0.3, 0.7), "sampler": "euler_karras"},
    {"users": (User(C),), "steps": 3, "sampler": "lcm", "preview_every": 1},
    {"width": 32, "height": 64, "steps": 5, "prompt": "a cat on a hill at night"},
]


@pytest.fixture
def requests(release: Release) -> list[GenerationRequest]:
    defaults = release.defaults
    return [defaults.request(**({"prompt": "a house", "seed": 5} | c)) for c in CHOICES]


Run = Callable[[list[GenerationRequest]], list[np.ndarray]]


@pytest.fixture(params=[1, 2], ids=["one part", "parts side by side"])
def run(
    request: pytest.FixtureRequest,
    backbone: Backbone,
    adapter: UserAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """Final latents of requests made together: half from the start, half joining at step 2."""
    monkeypatch.setattr(lanes, "LEAST", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)

    def together(requests: list[GenerationRequest]) -> list[np.ndarray]:
        running = Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS)
        early, late = requests[::2], requests[1::2]
        first: list[Ticket] = running.submit_all(early)
        second: list[Ticket] = []

        def join(progress: Progress) -> None:
            if progress.step == 2:
                second.extend(running.submit_all(late))

        first[0].on_step(join)
        with running:
            made = [ticket.result(60).latents for ticket in first]
            joined = [ticket.result(60).latents for ticket in second]
        order = [*range(0, len(requests), 2), *range(1, len(requests), 2)]
        latents = dict(zip(order, made + joined, strict=True))
        return [latents[i] for i in range(len(requests))]

    yield together
    torch.set_num_threads(before)


def check_isolation(run: Run, requests: list[GenerationRequest]) -> None:
    alone = [run([request])[0] for request in requests]
    together = run(requests)
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        error = float(np.abs(one - other).max())
        assert error < TOLERANCE, f"row {i} differs by {error} beside its neighbours"


def test_users_differ(run: Run, requests: list[GenerationRequest]) -> None:
    """Without this, isolation would be easy."""
    pictures = run(requests[:5])
    for i in range(5):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).max() > 0.1, (i, j)


def test_rows_are_isolated(run: Run, requests: list[GenerationRequest]) -> None:
    check_isolation(run, requests)


def test_scale_zero_is_nobody(run: Run, requests: list[GenerationRequest]) -> None:
    nobody, scale_zero = run([requests[0]])[0], run([requests[6]])[0]
    assert np.array_equal(nobody, scale_zero)


def test_a_zero_embedding_is_nobody(run: Run, requests: list[GenerationRequest]) -> None:
    average = User(np.zeros((EMBEDDING_ROWS, EMBEDDING_DIM), np.float32))
    defaults = {k: v for k, v in vars(requests[0]).items() if k != "users"}
    assert np.array_equal(
        run([GenerationRequest(**defaults, users=(average,))])[0], run([requests[0]])[0]
    )


def test_two_halves_of_a_user_are_the_user(run: Run, requests: list[GenerationRequest]) -> None:
    fields = {k: v for k, v in vars(requests[1]).items() if k != "users"}
    halves = GenerationRequest(**fields, users=(User(A, 0.5), User(A, 0.5)))
    assert np.abs(run([halves])[0] - run([requests[1]])[0]).max() < TOLERANCE


class TestTheCheckCanFail:
    """Each plants one leak that a lone row cannot show."""

    def test_tokens_folded_across_rows(
        self, run: Run, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = UserAdapter.condition

        def folded(self: Any, users: Tensor | None, weights: Tensor | None = None) -> Any:
            if users is None or weights is None:
                return honest(self, users, weights)
            everyone = users.flatten(0, 2).expand(len(users), 1, -1, -1, -1)
            return honest(self, everyone, weights.sum(1, keepdim=True))

        monkeypatch.setattr(UserAdapter, "condition", folded)
        with pytest.raises(AssertionError, match="neighbours"):
            check_isolation(run, requests)

    def test_one_scale_for_the_batch(
        self, run: Run, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = UserAdapter.condition

        def shared(self: Any, users: Tensor | None, weights: Tensor | None = None) -> Any:
            return honest(self, users, None if weights is None else weights[:1].expand_as(weights))

        monkeypatch.setattr(UserAdapter, "condition", shared)
        with pytest.raises(AssertionError, match="neighbours"):
            check_isolation(run, requests)

    def test_one_spread_for_the_batch(
        self, run: Run, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pooled(m: Tensor, negative: Tensor, scale: Tensor, rescale: Tensor) -> Tensor:
            guided = negative + scale.view(-1, 1, 1, 1) * (m - negative)
            share = rescale.view(-1, 1, 1, 1)
            return guided * (share * m.std() / guided.std() + (1 - share))

        monkeypatch.setattr(rows, "_guide", pooled)
        with pytest.raises(AssertionError, match="neighbours"):
            check_isolation(run, requests)

    def test_one_source_of_noise(
        self, run: Run, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = torch.Generator()

        def start(*args: Any) -> rows.Row:
            shared.manual_seed(0)
            row = honest(*args)
            row.generator = shared
            return row

        honest = batch.start_row
        monkeypatch.setattr(batch, "start_row", start)
        with pytest.raises(AssertionError, match="neighbours"):
            check_isolation(run, requests)
