"""What each key has used of its limits, and how a client is told: IETF's ``RateLimit`` fields.

Counted in this process: behind several gateways, a key has its limits at each of them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ppd_serve.errors import LimitExceeded
from ppd_serve.keys import ApiKey

WINDOW_SECONDS = 60
RETRY_SECONDS = 1.0  # when work will end is not known
HEADERS = ("RateLimit", "RateLimit-Policy")


class Slot:
    """A place among the work that a key may have under way; free when nobody holds it any more.
    A drawing that outlives its call holds on to the call's."""

    def __init__(self, free: Callable[[], None] = lambda: None) -> None:
        self._free, self._holders = free, 0

    def hold(self) -> None:
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._free()


@dataclass
class _Used:
    calls: deque[float] = field(default_factory=deque)  # when, in the last window
    working: int = 0


class Usage:
    """``clock``: seconds, of any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys: dict[str, _Used] = {}

    def take(self, key: ApiKey, work: bool) -> Slot:
        """Count a call, which holds the slot. Raises ``LimitExceeded``; a call that is refused
        counts for nothing. The window slides: no 60 s have more calls than ``rate_per_minute``.
        Only ``work`` needs a free place, so that a key that has none can still look and stop."""
        used = self._now(key)
        if work and key.concurrency is not None and used.working >= key.concurrency:
            raise LimitExceeded(
                f"This key may have {key.concurrency} at work at once", retry_after=RETRY_SECONDS
            )
        if key.rate_per_minute is not None:
            if len(used.calls) >= key.rate_per_minute:
                raise LimitExceeded(
                    f"This key may make {key.rate_per_minute} calls a minute",
                    retry_after=self._until_more(key, used),
                )
            used.calls.append(self._clock())
        slot = Slot()
        if work and key.concurrency is not None:
            used.working += 1
            slot = Slot(lambda: self._ended(used))
        slot.hold()
        return slot

    def headers(self, key: ApiKey) -> dict[str, str]:
        """What the key's limits are and what is left, as draft-ietf-httpapi-ratelimit-headers
        writes it; nothing for a key without limits."""
        used = self._now(key)
        left, policy = [], []
        if key.rate_per_minute is not None:
            free = max(0, key.rate_per_minute - len(used.calls))
            wait = math.ceil(self._until_more(key, used))
            policy.append(f'"default";q={key.rate_per_minute};w={WINDOW_SECONDS}')
            left.append(f'"default";r={free};t={wait}')
        if key.concurrency is not None:
            free = max(0, key.concurrency - used.working)
            policy.append(f'"concurrency";q={key.concurrency};qu="concurrent-requests"')
            left.append(f'"concurrency";r={free}')
        values = (", ".join(left), ", ".join(policy))
        return dict(zip(HEADERS, values, strict=True)) if policy else {}

    def _now(self, key: ApiKey) -> _Used:
        used = self._keys.setdefault(key.id, _Used())
        while used.calls and used.calls[0] <= self._clock() - WINDOW_SECONDS:
            used.calls.popleft()
        return used

    def _until_more(self, key: ApiKey, used: _Used) -> float:
        """Seconds until more calls may be made than now."""
        if not used.calls:
            return 0.0
        assert key.rate_per_minute is not None
        oldest = used.calls[max(0, len(used.calls) - key.rate_per_minute)]
        return oldest + WINDOW_SECONDS - self._clock()

    @staticmethod
    def _ended(used: _Used) -> None:
        used.working -= 1
