"""Whose turn it is: the rows that share the next forward.

Rows may share a forward if they are in one stage and their latents have one shape; they form a
group. The rule between groups: **every row is owed the same work**, counted in pixels of its
picture. (Not in latent elements: the stages of a backbone see latents of very different sizes, and
are built to cost about the same.) A group's clock advances with each of its forwards by the work of
a row's step times the share of its rows that took part. The group whose clock is earliest is next;
in it, the rows that have waited longest, as many as its forward holds. A group that appears starts
at the earliest clock there is: being away earns nothing.

So between two forwards of a group whose steps are work of S another group, of s, is given work of
at most S + s for each of its rows: sixteen small pictures do not hold up a large one, a large one
does not make small ones wait for a large step at each of theirs, and how many steps a picture has
left changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from ppd_serve.diffusion.backbone import Stage

Shape = tuple[int, ...]


class Group(NamedTuple):
    """What rows that share a forward have in common."""

    stage: Stage
    shape: Shape


class Member(Protocol):
    """All that is asked of a row; ``work`` is what a step of it costs, the same in a group."""

    @property
    def group(self) -> Group: ...

    @property
    def work(self) -> float: ...


M = TypeVar("M", bound=Member)


class Turns:
    """The groups' clocks."""

    def __init__(self) -> None:
        self._clocks: dict[Group, float] = {}

    def next(self, rows: list[M], most: Callable[[Group], int]) -> list[M]:
        """Of ``rows`` those that step now, at most ``most(group)`` of them; charged for it.

        ``rows`` stand in the order of waiting: the chosen are moved to the end, as newcomers are
        put there.
        """
        groups: dict[Group, list[M]] = {}
        for row in rows:
            groups.setdefault(row.group, []).append(row)
        earliest = min((self._clocks[g] for g in groups if g in self._clocks), default=0.0)
        self._clocks = {group: self._clocks.get(group, earliest) for group in groups}
        if not groups:
            return []
        # Of equal clocks the first: groups stand in the order of their longest-waiting rows.
        group = min(groups, key=self._clocks.__getitem__)
        members = groups[group]
        chosen = members[: most(group)]
        self._clocks[group] += chosen[0].work * len(chosen) / len(members)
        rows[:] = [row for row in rows if row not in chosen] + chosen
        return chosen
