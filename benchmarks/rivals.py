"""Those who draw the same pictures: stock diffusers, the server, and our engine by itself.

Those in this process work one at a time, each in threads that end with its work (``alone``).
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.alone import alone, seconds_alone
from benchmarks.callers import Body, together
from benchmarks.report import seconds
from benchmarks.stock import Stock
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.picture import encode_picture
from ppd_serve.diffusion.request import Result, User
from ppd_serve.release import Release

STOCK, HTTP, BARE, ENGINE, NOBODY = "stock", "http", "bare", "engine", "engine without users"
Spent = dict[str, float]


class Own:
    """An engine in this process, a new one each time, with the release's adapter or on the backbone
    alone."""

    def __init__(
        self, release: Release, dtype: torch.dtype, steps: int, rows: int, *, users: bool
    ) -> None:
        self._defaults, self._steps = release.defaults, steps
        self._shape = release.manifest.embedding_shape or (1, 1)
        self._random = np.random.default_rng(0)
        self._backbone = alone(lambda: release.load_backbone(dtype=dtype, packed=True))
        self._adapter = alone(lambda: release.load_adapter(self._backbone)) if users else None
        self._rows = rows

    def draw(self, bodies: Sequence[Body], steps: int | None = None) -> tuple[Spent, list[Result]]:
        """What the time went to, and the pictures."""
        stamps: list[float] = []
        wanted = [
            self._defaults.request(
                body["prompt"], negative_prompt=body["negative_prompt"], seed=body["seed"],
                steps=steps or self._steps, users=self._user(),
            )
            for body in bodies
        ]  # fmt: skip
        with Engine(
            self._backbone, self._adapter, embedding_rows=self._shape[0], max_rows=self._rows
        ) as engine:
            began = time.perf_counter()
            tickets = engine.submit_all(wanted)
            tickets[-1].on_step(lambda _: stamps.append(time.perf_counter()))
            results = [ticket.result() for ticket in tickets]
            ended = time.perf_counter()
        # All of them step together, the last one last.
        spent: Spent = {
            "engine: texts, users, noise, first step": stamps[0] - began,
            "engine: the other steps": stamps[-1] - stamps[0],
            "engine: autoencoder": ended - stamps[-1],
        }
        return spent, results

    def _user(self) -> tuple[User, ...]:
        drawn = self._random.standard_normal(self._shape).astype(np.float32)
        return (User(drawn),) if self._adapter else ()


class Rivals:
    """All that are compared; ``spent`` collects, by how many pictures were drawn together, what the
    server's calls and the engine spent on what."""

    def __init__(self, release: Release, stock: Stock, rows: int) -> None:
        self.stock, self._release = stock, release
        self.own = {
            name: Own(release, stock.dtype, stock.steps, rows, users=name == ENGINE)
            for name in (ENGINE, NOBODY)
        }
        self.spent: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def run(self, name: str, bodies: Sequence[Body]) -> float:
        """Seconds that one of those in this process takes for these pictures."""
        if name == STOCK:
            return seconds_alone(lambda: [self.stock.draw(body) for body in bodies])
        if name == BARE:
            return seconds_alone(lambda: self.stock.bare(bodies))
        return self._engine(name, bodies)

    def call(self, url: str, bodies: Sequence[Body]) -> float:
        """Seconds that the server takes for them, asked for at once."""
        took, answers = asyncio.run(together(url, bodies))
        spent = self.spent[len(bodies)]
        for answer in answers:
            timing = answer["timing"]
            parts = {part: timing[part] for part in ("taste", "draw", "store")}
            for part, value in parts.items():
                spent[f"a call: {part}"].append(value)
            spent["a call: records"].append(timing["total"] - sum(parts.values()))
            spent["a call: HTTP, before and after"].append(answer["waited"] - timing["total"])
        return took

    def _engine(self, name: str, bodies: Sequence[Body]) -> float:
        parts, results = self.own[name].draw(bodies)
        if name == ENGINE:
            png = seconds(lambda: [encode_picture(result.pixels) for result in results])
            for part, value in {**parts, "PNG, all of them": png}.items():
                self.spent[len(bodies)][part].append(value)
        return sum(parts.values())

    def differences(self, url: str, body: Body) -> tuple[int, int, int]:
        """The largest of a picture of nobody's, of 255: the server's from stock's, stock's from
        stock's in float32, the server's from that."""
        _, (answer,) = asyncio.run(together(url, [body]))
        served = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["b64_json"])))

        def pictures() -> tuple[Image.Image, ...]:
            exact = Stock(self._release, torch.float32, self.stock.steps)
            return served, self.stock.draw(body), exact.draw(body)

        ours, theirs, best = (np.asarray(image.convert("RGB"), int) for image in alone(pictures))
        largest = (np.abs(a - b).max() for a, b in ((ours, theirs), (theirs, best), (ours, best)))
        apart, stock_s, own = map(int, largest)
        return apart, stock_s, own
