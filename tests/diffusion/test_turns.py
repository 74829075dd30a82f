"""No size and no long job starves another: work per row, however rows come and go."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ppd_serve.diffusion.turns import Group, Shape, Turns
from tests.diffusion.toy import Toy

STAGE = Toy()
SMALL, LARGE = (4, 8, 8), (4, 32, 32)
SHAPES = [SMALL, (4, 8, 16), (4, 16, 8), LARGE]


@dataclass(eq=False)
class Member:
    shape: Shape
    steps: int = 0
    stage: Toy = STAGE

    @property
    def group(self) -> Group:
        return Group(self.stage, self.shape)

    @property
    def work(self) -> float:
        return math.prod(self.shape)

    @property
    def given(self) -> float:
        return self.steps * self.work


class Ticks:
    """The engine's use of ``Turns``, without a forward."""

    def __init__(self, most: int) -> None:
        self.turns, self.most = Turns(), most
        self.rows: list[Member] = []

    def join(self, shape: Shape) -> Member:
        self.rows.append(Member(shape))
        return self.rows[-1]

    def tick(self) -> list[Member]:
        chosen = self.turns.next(self.rows, lambda group: self.most)
        for row in chosen:
            row.steps += 1
        return chosen


def test_nobody_has_no_turn() -> None:
    assert Ticks(1).tick() == []


@given(
    counts=st.lists(st.integers(0, 7), min_size=len(SHAPES), max_size=len(SHAPES)),
    most=st.integers(1, 8),
    ticks=st.integers(1, 200),
)
def test_every_row_is_given_the_same_work(counts: list[int], most: int, ticks: int) -> None:
    engine = Ticks(most)
    for shape, n in zip(SHAPES, counts, strict=True):
        for _ in range(n):
            engine.join(shape)
    for _ in range(ticks):
        chosen = engine.tick()
        assert len({row.shape for row in chosen}) <= 1 and len(chosen) <= most
    for one in engine.rows:
        for other in engine.rows:
            # Each is at most a step ahead of its group's share, and so is its group of the other.
            steps = 1 if one.shape == other.shape else 2
            owed = steps * max(math.prod(one.shape), math.prod(other.shape))
            assert abs(one.given - other.given) <= owed


@given(
    most=st.integers(1, 4),
    arrivals=st.lists(
        st.sampled_from([[], [SMALL], [SMALL, SMALL], [SMALL, LARGE], [LARGE, LARGE]]), min_size=60
    ),
)
def test_a_stream_of_one_step_jobs_holds_nobody_up(most: int, arrivals: list[list[Shape]]) -> None:
    """New rows of both sizes at every tick, gone after a step: the one that stays is stepped within
    a bound that does not know how long the stream is."""
    places = 6
    engine = Ticks(most)
    stays = engine.join(LARGE)
    waited = 0
    for arriving in arrivals:
        for shape in arriving[: places - len(engine.rows)]:
            engine.join(shape)
        chosen = engine.tick()
        engine.rows = [row for row in engine.rows if row is stays or row not in chosen]
        waited = 0 if stays in chosen else waited + 1
        # All before it in its group, and the small ones' share of the work in between.
        assert waited <= places * (1 + places * math.prod(LARGE) // math.prod(SMALL))


def test_a_small_size_steps_as_often_as_its_size_allows() -> None:
    engine = Ticks(16)
    small, large = engine.join(SMALL), engine.join(LARGE)
    for _ in range(17 * 10):
        engine.tick()
    assert (small.steps, large.steps) == (160, 10)


def test_stages_do_not_share_a_forward() -> None:
    engine = Ticks(16)
    first, second = engine.join(SMALL), engine.join(SMALL)
    second.stage = Toy()
    for _ in range(10):
        assert len(engine.tick()) == 1
    assert first.steps == second.steps == 5


def test_being_away_earns_nothing() -> None:
    engine = Ticks(16)
    small = engine.join(SMALL)
    for _ in range(1000):
        engine.tick()
    large = engine.join(LARGE)
    turns = [engine.tick() for _ in range(34)]
    assert turns.count([large]) == 2 and turns.count([small]) == 32


def test_a_forward_too_small_for_its_group_goes_round() -> None:
    engine = Ticks(2)
    rows = [engine.join(SMALL) for _ in range(5)]
    for _ in range(25):
        engine.tick()
        steps = [row.steps for row in rows]
        assert max(steps) - min(steps) <= 1
    assert set(steps) == {10}
