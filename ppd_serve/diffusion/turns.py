"""Whose turn it is: the rows that share the next forward.

Rows may share a forward if their latents have one shape; they form a group. The rule between
groups: **every row is owed the same work**, counted in latent elements. A group's clock advances
with each of its forwards by the size of its latent times the share of its rows that took part. The
group whose clock is earliest is next; in it, the rows that have waited longest, as many as its
forward holds. A group that appears starts at the earliest clock there is: being away earns nothing.

So between two forwards of a group with latents of size S another group, of size s, is given work of
at most S + s for each of its rows: sixteen small pictures do not hold up a large one, a large one
does not make small ones wait for a large step at each of theirs, and how many steps a picture has
left changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

Shape = tuple[int, ...]


class Shaped(Protocol):
    """All that is asked of a row."""

    @property
    def shape(self) -> Shape: ...


S = TypeVar("S", bound=Shaped)


class Turns:
    """The groups' clocks."""

    def __init__(self) -> None:
        self._clocks: dict[Shape, float] = {}

    def next(self, rows: list[S], most: Callable[[Shape], int]) -> list[S]:
        """Of ``rows`` those that step now, at most ``most(shape)`` of them; charged for it.

        ``rows`` stand in the order of waiting: the chosen are moved to the end, as newcomers are
        put there.
        """
        groups: dict[Shape, list[S]] = {}
        for row in rows:
            groups.setdefault(row.shape, []).append(row)
        earliest = min((self._clocks[s] for s in groups if s in self._clocks), default=0.0)
        self._clocks = {shape: self._clocks.get(shape, earliest) for shape in groups}
        if not groups:
            return []
        # Of equal clocks the first: groups stand in the order of their longest-waiting rows.
        shape = min(groups, key=self._clocks.__getitem__)
        group = groups[shape]
        chosen = group[: most(shape)]
        self._clocks[shape] += math.prod(shape) * len(chosen) / len(group)
        rows[:] = [row for row in rows if row not in chosen] + chosen
        return chosen
