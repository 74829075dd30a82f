"""Who calls: users who have made choices, and drawings of which no two are alike."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from ppd_client import AsyncClient
from training.data.pool import png
from training.data.world import CAPTIONS, render, sample_style

Body = dict[str, Any]
Json = dict[str, Any]
PATIENCE = httpx.Timeout(None)


def caller(url: str) -> httpx.AsyncClient:
    """As many connections as there are calls at once; waits as long as it takes."""
    none = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=none, trust_env=False)


async def new_users(
    url: str, count: int, random: np.random.Generator, choices: int = 4
) -> list[str]:
    """Users who have just made so many choices, all of them read."""
    names = [f"u{random.integers(2**62):x}" for _ in range(count)]

    def pictures(seed: int) -> tuple[str, bytes, bytes]:
        caption = CAPTIONS[random.integers(len(CAPTIONS))]
        left, right = (png(render(caption, sample_style(random), seed + k)) for k in (0, 1))
        return str(caption), left, right

    async with AsyncClient(url) as client:
        for name in names:  # the encoder reads one at a time
            made = [pictures(int(random.integers(2**31))) for _ in range(choices)]
            if (await client.add_preferences(name, made)).embedding.status != "current":
                raise RuntimeError("the encoder is too slow to measure anything else")
    return names


def drawings(users: Sequence[str], random: np.random.Generator, **fields: Any) -> Iterator[Body]:
    """Endless bodies of ``POST /generate``, the users in turn (none: for nobody). Prompts, negative
    ones too, and seeds do not come again: nothing that is kept of one serves another."""
    whom = itertools.cycle(users) if users else itertools.repeat(None)
    for user in whom:
        prompt, negative = (
            f"{CAPTIONS[random.integers(len(CAPTIONS))]}, {random.integers(2**32):x}"
            for _ in range(2)
        )
        seed = int(random.integers(2**32))
        body = {"prompt": prompt, "negative_prompt": negative, "seed": seed, **fields}
        yield body if user is None else {**body, "user_id": user}


async def together(url: str, bodies: Sequence[Mapping[str, Any]]) -> tuple[float, list[Json]]:
    """All at once, each by a caller of its own. Seconds until the last has its pictures, and the
    answers, each with the seconds that its caller waited (``waited``)."""
    async with caller(url) as http:

        async def call(body: Mapping[str, Any]) -> Json:
            began = time.perf_counter()
            response = await http.post("/generate", json=body)
            response.raise_for_status()
            return {**response.json(), "waited": time.perf_counter() - began}

        began = time.perf_counter()
        answers = await asyncio.gather(*map(call, bodies))
        return time.perf_counter() - began, answers
