"""Sixteen people at once over HTTP, against stock diffusers drawing for them one after the other.

    .venv/bin/python -m benchmarks.bench_http

The server is the real one, on its default settings; the baseline is ``StableDiffusionPipeline`` on
the release's backbone, called in this process: same steps, size, sampler, guidance, in whichever of
float32 and bfloat16 it is faster in here, and the server in the same. It knows no users, makes no
PNG, stores nothing. All cores are everybody's, but only one works at a time, in turns, so that a
drift of the machine's speed meets all; a ratio is the median of the turns' own. Every drawing has a
user, prompts and a seed that were never seen before.

How much a batch can bring here at all is measured beside it: the same texts, denoiser forwards and
decoding bare in torch, for sixteen and for one. The user branch is priced in our engine, against
the same engine on a backbone that has none. The last table is of callers who come at random, at
half of what the server was just seen to draw.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.callers import Body, caller, drawings, new_users, together
from benchmarks.load import poisson, summary
from benchmarks.report import OUT, STUDIO, Figure, about, ratios, seconds, spread, write
from benchmarks.rivals import BARE, ENGINE, HTTP, NOBODY, STOCK, Rivals
from benchmarks.stock import Stock
from ppd_serve.release import Release, load_release
from training.local_server import local_server

PRECISIONS = (torch.float32, torch.bfloat16)
SHARE_OF_CAPACITY = 0.5
SERVER = {"PPD_ENCODE_WAIT_S": "600"}  # users are read before they are measured, not meanwhile
Table = dict[str, Figure | float]


def faster(release: Release, steps: int | None, turns: int) -> tuple[Stock, Table]:
    """Stock in the precision in which it draws faster, and how it does in each."""
    stocks = [Stock(release, dtype, steps) for dtype in PRECISIONS]
    bodies = drawings([], np.random.default_rng())
    for stock in stocks:
        stock.draw(next(bodies))
    times = [[seconds(lambda s=stock: s.draw(next(bodies))) for stock in stocks]  # type: ignore[misc]
             for _ in range(turns)]  # fmt: skip
    columns = dict(zip(stocks, zip(*times, strict=True), strict=True))
    best = min(columns, key=lambda stock: statistics.median(columns[stock]))
    return best, {f"{_name(stock.dtype)}, s": spread(took) for stock, took in columns.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def take_turns(
    rivals: Rivals, names: Iterable[str], fresh: Iterable[Body], count: int, turns: int
) -> dict[str, list[float]]:
    """Seconds of each for ``count`` pictures, in every turn."""
    source = iter(fresh)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, times in found.items():
            times.append(rivals.run(name, [next(source) for _ in range(count)]))
    return found


def measure(
    release: Release,
    stock: Stock,
    url: str,
    *,
    callers: int,
    turns: int,
    lonely: int,
    load_s: float,
) -> dict[str, Table]:
    """Every table. Each turn has new users, ``lonely`` single calls and one of ``callers``."""
    random, steps = np.random.default_rng(), stock.steps
    rivals = Rivals(release, stock, url, callers)
    names = (STOCK, HTTP, ENGINE, NOBODY, BARE)
    alone: dict[str, list[float]] = defaultdict(list)
    crowd: dict[str, list[float]] = defaultdict(list)
    gains: list[float] = []
    try:
        for turn in range(-1, turns):  # the first warms up
            users = asyncio.run(new_users(url, callers, random))
            fresh = drawings(users, random, steps=steps)
            singles = take_turns(rivals, names, fresh, 1, lonely)
            together = take_turns(rivals, names, fresh, callers, 1)
            if turn < 0:
                rivals.spent.clear()
                continue
            for name in names:
                alone[name] += singles[name]
                crowd[name] += together[name]
            gains.append(callers * statistics.median(singles[BARE]) / together[BARE][0])
        tables = {
            f"{callers} callers at once": _crowd(crowd, gains),
            "one lonely call": {
                "stock, s": spread(alone[STOCK]),
                "over HTTP, s": spread(alone[HTTP]),
                "over HTTP / stock": ratios(alone[HTTP], alone[STOCK], "≤ 1.15"),
            },
            "cost of the user branch": {
                "alone": _cost(alone, "≤ 0.06"),
                f"{callers} together": _cost(crowd, "≤ 0.15"),
            },
            f"where {callers} callers' time goes, s": _profile(rivals, crowd, callers),
            "where a lonely call's time goes, s": _profile(rivals, alone, 1),
            "that it is fair": {
                "largest difference of a picture, stock's and the server's, of 255": (
                    rivals.difference(next(drawings([], random, steps=steps)))
                ),
                "a core's share that the server takes while stock works": spread(rivals.idle),
            },
            "one step, asked for over HTTP": _one_step(rivals, random, lonely * turns),
        }
    finally:
        rivals.close()
    rate = SHARE_OF_CAPACITY * callers / statistics.median(crowd[HTTP])
    title = f"callers at random, {rate:.2g} a second for {load_s:g} s"
    return {**tables, title: asyncio.run(_at_random(url, rate, load_s, random, steps))}


def _crowd(crowd: Mapping[str, list[float]], gains: Sequence[float]) -> Table:
    speedups = [a / b for a, b in zip(crowd[STOCK], crowd[HTTP], strict=True)]
    return {
        "stock, one after the other, s": spread(crowd[STOCK]),
        "over HTTP, s": spread(crowd[HTTP]),
        "times faster than stock": spread(speedups, "≥ 2.2"),
        "batching gain of texts, denoiser and decoding alone": spread(gains),
        "share of it that the server reaches": ratios(speedups, gains, "≥ 0.8"),
    }


def _cost(times: Mapping[str, list[float]], goal: str) -> Figure:
    return spread([a / b - 1 for a, b in zip(times[ENGINE], times[NOBODY], strict=True)], goal)


def _profile(rivals: Rivals, times: Mapping[str, list[float]], count: int) -> Table:
    beside = [a - b for a, b in zip(times[HTTP], times[ENGINE], strict=True)]
    return {
        "over HTTP, whole": spread(times[HTTP]),
        "the engine alone, whole": spread(times[ENGINE]),
        "what HTTP, Ray, storage and PNG add": spread(beside),
        **{part: spread(spent) for part, spent in sorted(rivals.spent[count].items())},
    }


def _one_step(rivals: Rivals, random: np.random.Generator, turns: int) -> Table:
    """What a call costs beside the engine's work, which is next to none here."""
    bodies = drawings([], random, steps=1)
    served, own = [], []
    for _ in range(turns):
        served.append(asyncio.run(together(rivals.url, [next(bodies)]))[0])
        own.append(seconds(lambda: rivals.own[NOBODY].draw([next(bodies)], steps=1)))
    beside = [1e3 * (a - b) for a, b in zip(served, own, strict=True)]
    return {
        "over HTTP, ms": spread([1e3 * s for s in served]),
        "the engine alone, ms": spread([1e3 * s for s in own]),
        "HTTP, Ray, storage and PNG, ms": spread(beside),
    }


async def _at_random(
    url: str, rate: float, load_s: float, random: np.random.Generator, steps: int
) -> Table:
    users = await new_users(url, max(1, round(rate * load_s)), random, choices=1)
    async with caller(url) as http:
        return summary(
            await poisson(http, drawings(users, random, steps=steps), rate, load_s, random)
        )


def main(
    turns: int = 5,
    callers: int = 16,
    lonely: Annotated[int, typer.Option(help="Single calls in each turn.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Default: the release's.")] = None,
    load_s: Annotated[float, typer.Option(help="Seconds of callers at random.")] = 60.0,
    release: Path = STUDIO,
    out: Path = OUT / "http.json",
) -> None:
    loaded = load_release(release)
    where = about(loaded)
    stock, precisions = faster(loaded, steps, lonely)
    settings = {**SERVER, "PPD_RELEASE": str(release.absolute()),
                "PPD_DIFFUSER__DTYPE": _name(stock.dtype)}  # fmt: skip
    with local_server(settings=settings) as url:
        tables = measure(
            loaded, stock, url, callers=callers, turns=turns, lonely=lonely, load_s=load_s
        )
    where |= {"precision": _name(stock.dtype), "threads": torch.get_num_threads(),
              "steps": stock.steps, "turns": turns}  # fmt: skip
    write(out, where, {"stock diffusers, a picture": precisions, **tables})


if __name__ == "__main__":
    typer.run(main)
