"""Placement as a problem of numbers: how many replicas of each option, so that the rate is served at least
cost.

Exists so that several solvers work on the same thing and can be held against each other. It must not know
queues, models or GPUs: an option's curve says what its replicas serve. Rates in requests a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tokenmill.decide.fleet.capacity import Curve


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of one kind that may be placed.

    ``gpus``, ``cost``: of one replica; the GPUs are taken from ``pool``. ``prefill``: it computes prompts
    for others. Else it decodes, and of its prompts the share ``remote`` must come from prefill replicas, in
    a place that it ``accepts`` caches from. ``place``: where it stands, as far as links matter.
    """

    name: str
    pool: str
    gpus: int
    cost: float
    curve: Curve
    prefill: bool = False
    remote: float = 0.0
    place: str = ""
    accepts: frozenset[str] = frozenset({""})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """``pools``: GPUs by pool. ``links``: most requests a second whose caches can move from one place to
    another, where that is limited. ``required``: groups of options (marked by position) of each of which a
    plant must have a replica."""

    options: tuple[Option, ...]
    pools: Mapping[str, int]
    links: Mapping[tuple[str, str], float] = {}
    required: tuple[tuple[bool, ...], ...] = ()

    def only(self, keep: Sequence[bool]) -> Problem:
        """Return the problem with the options that ``keep`` marks."""
        options = tuple(option for option, kept in zip(self.options, keep, strict=True) if kept)
        required = tuple(
            tuple(mark for mark, kept in zip(marks, keep, strict=True) if kept) for marks in self.required
        )
        return Problem(options=options, pools=self.pools, links=self.links, required=required)

    def most(self, option: Option) -> int:
        """Return how many replicas of an option there can be at most."""
        return min(option.curve.most, self.pools[option.pool] // option.gpus)

    def has_required(self, counts: Sequence[int]) -> bool:
        """Return whether so many replicas of each option are a plant with all that is required."""
        return all(
            any(count and mark for count, mark in zip(counts, marks, strict=True)) for marks in self.required
        )

    def cost(self, counts: Sequence[int]) -> float:
        """Return what so many replicas of each option cost."""
        return sum(count * option.cost for option, count in zip(self.options, counts, strict=True))

    def fits(self, counts: Sequence[int]) -> bool:
        """Return whether the pools have GPUs for so many replicas of each option."""
        used = dict.fromkeys(self.pools, 0)
        for option, count in zip(self.options, counts, strict=True):
            used[option.pool] += option.gpus * count
        return all(used[pool] <= gpus for pool, gpus in self.pools.items())


class Solution(NamedTuple):
    """``counts``: replicas by option. ``rate``: the most requests a second that they serve, ``cost`` of
    all."""

    counts: tuple[int, ...]
    rate: float
    cost: float


TIE = 1e-9
"""Rates and costs that differ by less than this share are equal."""


def undominated(problem: Problem) -> list[bool]:
    """Mark the options that can be part of a best solution.

    One is left out when another of the same pool and kind serves as much from the same GPUs, whatever their
    number. Sharing a line makes the other's replicas better still, so that nothing is lost where both would
    have been used.
    """
    keep = [problem.most(option) > 0 for option in problem.options]
    for index, option in enumerate(problem.options):
        for other_index, other in enumerate(problem.options):
            if index != other_index and keep[index] and keep[other_index] and _alike(option, other):
                better = _serves_as_much(problem, other, option)
                tie = better and _serves_as_much(problem, option, other)
                if better and not (tie and index < other_index):
                    keep[index] = False
    return keep


def _alike(option: Option, other: Option) -> bool:
    if option.prefill != other.prefill or option.pool != other.pool or option.place != other.place:
        return False
    same_price = abs(option.cost * other.gpus - other.cost * option.gpus) <= TIE * (1 + abs(option.cost))
    return same_price and (
        option.prefill or (option.remote == other.remote and option.accepts <= other.accepts)
    )


def _serves_as_much(problem: Problem, better: Option, option: Option) -> bool:
    most, known = problem.most(better), [count for count, _ in option.curve.points]
    counts = {*known, *(count - 1 for count in known), problem.most(option)}
    for count in counts:
        if 0 < count <= problem.most(option):
            replicas = min(most, count * option.gpus // better.gpus)
            if better.curve.rate(replicas) < option.curve.rate(count) * (1 - TIE):
                return False
    return True
