"""A stage that is stopped anywhere goes on as if it had not been."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from training.optimizer import OptimizerName, cosine
from training.stage import Diverged, Draws, Metrics, OtherRun, Stage, draws

STEPS = 30


class Killed(BaseException):
    """As a signal would be: not an error that anybody handles."""


def new_stage(directory: Path, *, stop_at: int | None = None, bad_at: int | None = None) -> Stage:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        if step == stop_at:
            raise Killed
        x = torch.randn(16, 4, generator=draw.torch)
        noise = float(draw.numpy.normal()) * 0.01
        value = (model(x) - x.sum(1, keepdim=True) - noise).square().mean()
        yield value * (math.nan if step == bad_at else 1), {"twice": 2 * float(value.detach())}

    return Stage(
        name="toy", directory=directory, modules={"model": model}, loss=loss, steps=STEPS,
        learning_rate=1e-2, warmup=3, save_every_s=0,
    )  # fmt: skip


def weights(stage: Stage) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in stage.modules["model"].state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def straight(tmp_path: Path) -> dict[str, Tensor]:
    stage = new_stage(tmp_path / "straight")
    assert stage.run()
    return weights(stage)


@pytest.mark.parametrize("stop_at", [1, 13, STEPS - 1])
def test_killed_and_resumed_is_bit_for_bit_the_same(
    tmp_path: Path, straight: dict[str, Tensor], stop_at: int
) -> None:
    with pytest.raises(Killed):
        new_stage(tmp_path, stop_at=stop_at).run()
    resumed = new_stage(tmp_path)
    assert resumed.run()
    assert same(weights(resumed), straight)


def test_without_a_checkpoint_at_the_kill_steps_are_repeated(
    tmp_path: Path, straight: dict[str, Tensor]
) -> None:
    first = new_stage(tmp_path, stop_at=20)
    first.save_every_s = 1e9
    with pytest.raises(Killed):
        first.run()
    assert not first.checkpoint.exists()
    resumed = new_stage(tmp_path)
    assert resumed.run()
    assert same(weights(resumed), straight)


def test_a_time_limit_stops_between_steps(tmp_path: Path, straight: dict[str, Tensor]) -> None:
    runs = 0
    while not (stage := new_stage(tmp_path)).run(seconds=0):
        runs += 1
        assert stage.checkpoint.exists()
        assert runs < STEPS
    assert runs == STEPS - 1
    assert same(weights(stage), straight)


def test_a_finished_stage_runs_no_further(tmp_path: Path, straight: dict[str, Tensor]) -> None:
    assert new_stage(tmp_path).run()
    again = new_stage(tmp_path, stop_at=0)
    assert again.run()
    assert same(weights(again), straight)
    assert again.history[-1]["step"] == STEPS and again.history[-1]["loss"] > 0


def test_a_checkpoint_of_a_gpu_goes_on_without_one(
    tmp_path: Path, straight: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed), monkeypatch.context() as gpu:
        gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        new_stage(tmp_path, stop_at=13).run()
    resumed = new_stage(tmp_path)
    assert resumed.run()
    assert same(weights(resumed), straight)


def test_a_bad_loss_before_any_checkpoint_promises_none(tmp_path: Path) -> None:
    stage = new_stage(tmp_path, bad_at=2)
    stage.save_every_s = 1e9
    with pytest.raises(Diverged, match="no checkpoint was written yet"):
        stage.run()


def test_a_bad_loss_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    stage = new_stage(tmp_path, bad_at=17)
    with pytest.raises(Diverged, match="17"):
        stage.run()
    kept = torch.load(stage.checkpoint, weights_only=True)
    assert kept["step"] == 17
    assert all(v.isfinite().all() for v in kept["modules"]["model"].values())
    assert new_stage(tmp_path).run()


def test_a_bad_gradient_counts_as_bad(tmp_path: Path) -> None:
    """A finite loss can have an infinite slope: sqrt at zero."""
    weight = nn.Linear(1, 1)

    def loss(step: int, _: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        yield (weight.weight * (0 if step == 4 else 1)).abs().sum().sqrt(), {}

    stage = Stage(
        name="steep", directory=tmp_path, modules={"w": weight}, loss=loss, steps=8,
        learning_rate=1e-3, save_every_s=0,
    )  # fmt: skip
    with pytest.raises(Diverged):
        stage.run()
    kept = torch.load(stage.checkpoint, weights_only=True)
    assert kept["step"] == 4
    assert weight.weight.isfinite().all()


def test_it_learns_and_ends_with_the_average(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    stage.steps = 200
    assert stage.run()
    assert stage.history[-1]["loss"] < 0.5 * stage.history[0]["loss"]
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert lines[0]["twice"] == pytest.approx(2 * lines[0]["loss"], rel=1e-3)
    live = torch.load(stage.checkpoint, weights_only=True)["modules"]["model"]["0.weight"]
    assert not torch.equal(weights(stage)["0.weight"], live)


def test_tensorboard_shows_what_the_log_says(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    stage.steps = 200
    assert stage.run()
    board = EventAccumulator(str(tmp_path / "tensorboard" / "toy"))
    board.Reload()
    for name in ("loss", "twice"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert [step for step, _ in shown] == [100, 200]
        logged = [line[name] for line in stage.history]
        assert [value for _, value in shown] == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_huge_gradient_steps_as_its_clipped_one_does(tmp_path: Path, name: OptimizerName) -> None:
    """Of the first two steps one gradient is too long by far; the other is shorter than the limit
    and stays what it is, or AdamW, which knows no lengths, could not tell."""
    limit, small = 0.5, torch.tensor([0.1, 0.0])

    def trained(place: str, huge: Tensor) -> Tensor:
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        module = nn.ParameterList([weight])

        def loss(step: int, _: Draws) -> Iterator[tuple[Tensor, Metrics]]:
            yield (weight * (small if step else huge)).sum(), {}

        stage = Stage(
            name="clipped", directory=tmp_path / place, modules={"w": module}, loss=loss, steps=2,
            learning_rate=0.1, optimizer=name, warmup=0, ema_decay=0.0, clip=limit,
        )  # fmt: skip
        assert stage.run()
        return weight.detach().clone()

    huge = torch.tensor([3e4, -4e4])
    clipped = trained("huge", huge)
    torch.testing.assert_close(
        clipped, trained("cut", limit * huge / huge.norm()), rtol=1e-5, atol=0
    )
    other = trained("twice", 0.5 * limit * huge / huge.norm())
    assert (clipped - other).abs().max() > 1e-3  # the length of the first gradient does matter


def test_peeks_see_the_averaged_weights(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    seen = []

    def peek(step: int) -> Metrics:
        seen.append((step, weights(stage)))
        return {"seen": float(step)}

    stage.peek, stage.peek_every = peek, 100
    assert stage.run()
    assert [step for step, _ in seen] == [STEPS]
    assert same(seen[0][1], weights(stage))
    assert stage.history[-1]["seen"] == STEPS


def test_the_numbers_of_a_step_depend_on_seed_and_step_alone() -> None:
    def numbers(seed: int, step: int) -> tuple[float, float]:
        draw = draws(seed, step)
        return float(draw.numpy.random()), float(torch.rand((), generator=draw.torch))

    assert numbers(0, 5) == numbers(0, 5)
    assert len({numbers(*x) for x in ((0, 5), (0, 6), (1, 5), (5, 0))}) == 4


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    rates = [cosine(step, 1000, warmup=100, hold=0.4) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:400] == [1.0] * 300
    assert all(a >= b for a, b in itertools.pairwise(rates[400:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_parts_of_a_loss_add_up(tmp_path: Path) -> None:
    """A batch in four parts takes the same steps as in one."""

    def trained(parts: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 1, dtype=torch.float64)

        def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
            x = torch.randn(16, 4, generator=draw.torch, dtype=torch.float64)
            for part in x.chunk(parts):
                yield (model(part) - part.sum(1, keepdim=True)).square().sum() / 16, {"parts": 1.0}

        stage = Stage(
            name="parts", directory=tmp_path / str(parts), modules={"model": model}, loss=loss,
            steps=10, learning_rate=1e-2, warmup=3,
        )  # fmt: skip
        assert stage.run()
        assert stage.history[-1]["parts"] == 1.0
        return weights(stage)

    whole, parted = trained(1), trained(4)
    for key in whole:
        torch.testing.assert_close(whole[key], parted[key], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["adamw8bit", "adafactor"])
def test_other_optimizers_learn_and_resume(tmp_path: Path, name: OptimizerName) -> None:
    def stage(directory: str, **changes: int) -> Stage:
        made = new_stage(tmp_path / directory, **changes)
        made.optimizer, made.steps = name, 60
        return made

    straight = stage("straight")
    straight.steps = 200
    assert straight.run()
    assert straight.history[-1]["loss"] < 0.9 * straight.history[0]["loss"]
    straight = stage("straight again")
    assert straight.run()
    with pytest.raises(Killed):
        stage("killed", stop_at=30).run()
    resumed = stage("killed")
    assert resumed.run()
    assert same(weights(resumed), weights(straight))


def test_a_checkpoint_is_gone_on_from_by_its_own_run_alone(
    tmp_path: Path, straight: dict[str, Tensor]
) -> None:
    def stage(**lineage: Any) -> Stage:
        made = new_stage(tmp_path)
        made.lineage = lineage
        return made

    own = {"seed": 3, "rate": 0.1, "betas": [0.9, 0.99], "data": "abc"}
    assert not stage(**own).run(seconds=0)
    kept = stage().checkpoint.read_bytes()
    with pytest.raises(OtherRun) as refused:
        stage(**own | {"seed": 4, "data": "xyz"}).run()
    said = str(refused.value)
    assert "seed was 3, is 4" in said and "data was 'abc', is 'xyz'" in said and "--out" in said
    assert "rate" not in said and "betas" not in said
    assert stage().checkpoint.read_bytes() == kept
    resumed = stage(**own)
    assert resumed.run()
    assert same(weights(resumed), straight)


def test_a_checkpoint_that_names_no_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    assert not new_stage(tmp_path).run(seconds=0)
    stage = new_stage(tmp_path)
    stage.lineage = {"seed": 0}
    with pytest.raises(OtherRun, match="does not say"):
        stage.run()


def test_told_to_stop_it_saves_and_goes_on_later(
    tmp_path: Path, straight: dict[str, Tensor]
) -> None:
    word = tmp_path / "stop"
    stage = new_stage(tmp_path)
    stage.save_every_s, stage.told_to_stop = 1e9, word.exists
    word.touch()
    assert not stage.run()
    assert torch.load(stage.checkpoint, weights_only=True)["step"] == 1
    word.unlink()
    resumed = new_stage(tmp_path)
    resumed.told_to_stop = word.exists
    assert resumed.run()
    assert same(weights(resumed), straight)
