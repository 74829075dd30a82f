"""Open-loop load: callers who come when they come (Poisson), however slow the server is.

    .venv/bin/python -m benchmarks.load http://127.0.0.1:8000 --rate 2 --seconds 60 --users 16

A caller's wait counts from the moment it was due, so that a server (or this program) that falls
behind shows; who waits for an answer before asking again would hide it. Each drawing has a prompt
and a seed of its own; users are made first, with choices, and come in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.callers import caller, drawings, new_users
from benchmarks.report import Figure


@dataclass(frozen=True)
class Answer:
    """``due`` and ``done`` in seconds; ``late``: how long after it was due the call was made.
    ``status`` 0: no answer at all. ``problem``: the type of an error."""

    due: float
    late: float
    done: float
    status: int
    problem: str | None = None
    retry_after: str | None = None

    @property
    def seconds(self) -> float:
        return self.done - self.due


async def ask(http: httpx.AsyncClient, due: float, method: str, path: str, **how: Any) -> Answer:
    """One call, from the time it was due by the loop's clock to the last byte."""
    now = asyncio.get_running_loop().time
    late = now() - due
    try:
        response = await http.request(method, path, **how)
    except httpx.HTTPError as error:
        return Answer(due, late, now(), 0, type(error).__name__)
    kind = response.json().get("type") if response.is_error else None
    return Answer(due, late, now(), response.status_code, kind, response.headers.get("retry-after"))


async def arrivals(
    begin: Callable[[float], Awaitable[Answer]],
    rate: float,
    calls: int,
    random: np.random.Generator,
) -> list[Answer]:
    """Call ``begin`` with the time at each arrival, ``rate`` of them a second on average, and wait
    for all that it began."""
    loop = asyncio.get_running_loop()
    begun: list[asyncio.Future[Answer]] = []
    for due in loop.time() + random.exponential(1 / rate, calls).cumsum():
        await asyncio.sleep(due - loop.time())
        begun.append(asyncio.ensure_future(begin(float(due))))
    return await asyncio.gather(*begun)


async def poisson(
    http: httpx.AsyncClient,
    bodies: Iterable[dict[str, Any]],
    rate: float,
    calls: int,
    random: np.random.Generator,
) -> list[Answer]:
    """``POST /generate``, so many times, ``rate`` times a second on average."""
    source = iter(bodies)
    return await arrivals(
        lambda due: ask(http, due, "POST", "/generate", json=next(source)), rate, calls, random
    )


def accepted(answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.status == 200]


def refused(answers: Sequence[Answer]) -> list[Answer]:
    """Told to come again later."""
    return [answer for answer in answers if answer.status == 503 and answer.retry_after]


def percentile(answers: Sequence[Answer], share: float) -> float:
    return float(np.percentile([answer.seconds for answer in answers], 100 * share))


def summary(answers: Sequence[Answer]) -> dict[str, Figure | float]:
    """What became of the calls, and how long those that were accepted waited."""
    good, away = accepted(answers), refused(answers)
    return {
        "calls": len(answers),
        "accepted": len(good),
        "refused, told when to come again": len(away),
        "neither": Figure(len(answers) - len(good) - len(away), goal="≤ 0"),
        **{f"p{share}, s": percentile(good, share / 100) for share in (50, 90, 99) if good},
        **({"refused after, p99, s": Figure(percentile(away, 0.99), goal="≤ 1")} if away else {}),
        "latest call, s after it was due": max(answer.late for answer in answers),
    }


def main(
    url: Annotated[str, typer.Argument()] = "http://127.0.0.1:8000",
    rate: Annotated[float, typer.Option(help="Arrivals a second, on average.")] = 1.0,
    seconds: float = 60.0,
    users: Annotated[int, typer.Option(help="So many users, made first; 0: nobody's.")] = 16,
    seed: int | None = None,
) -> None:
    random = np.random.default_rng(seed)

    async def run() -> list[Answer]:
        names = await new_users(url, users, random)
        async with caller(url) as http:
            calls = max(1, round(rate * seconds))
            return await poisson(http, drawings(names, random), rate, calls, random)

    for name, value in summary(asyncio.run(run())).items():
        print(f"{name}: {value.value if isinstance(value, Figure) else value:.4g}")


if __name__ == "__main__":
    typer.run(main)
