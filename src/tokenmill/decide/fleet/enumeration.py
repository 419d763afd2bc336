"""Placement by trying all: exact, and quick enough for a node or two.

Exists for small fleets and as what the linear program is held against. It must not know anything but the
problem.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenmill.decide.fleet.flow import throughput
from tokenmill.decide.fleet.problem import TIE, Option, Problem, Solution


def size(problem: Problem, *, most: int) -> int:
    """Return how many combinations there are, counted no further than a little above ``most``."""
    total = 1
    for pool, gpus in problem.pools.items():
        ways = [1] * (gpus + 1)  # ways[n]: to use at most n GPUs
        for option in (o for o in problem.options if o.pool == pool):
            ways = [
                sum(ways[free - count * option.gpus] for count in range(_most(problem, option, free) + 1))
                for free in range(gpus + 1)
            ]
            if ways[gpus] > most:
                return ways[gpus]
        total *= ways[gpus]
        if total > most:
            return total
    return total


def _most(problem: Problem, option: Option, free: int) -> int:
    return min(problem.most(option), free // option.gpus)


def cheapest(problem: Problem, rate: float) -> Solution | None:
    """Return the cheapest set that serves ``rate``, of equal ones the one with most to spare; None: there
    is none."""
    best: Solution | None = None
    for counts, cost in _combinations(problem):
        if best is not None and cost > best.cost * (1 + TIE) + TIE:
            continue
        found = throughput(problem, counts).rate
        if found < rate * (1 - TIE):
            continue
        if best is None or cost < best.cost * (1 - TIE) - TIE or found > best.rate * (1 + TIE):
            best = Solution(counts, found, cost)
    return best


def largest(problem: Problem) -> Solution | None:
    """Return the set that serves most, of equal ones the cheapest; None: nothing is served."""
    best: Solution | None = None
    for counts, cost in _combinations(problem):
        found = throughput(problem, counts).rate
        if found <= 0 or (best is not None and found < best.rate * (1 - TIE)):
            continue
        if best is None or found > best.rate * (1 + TIE) or cost < best.cost:
            best = Solution(counts, found, cost)
    return best


def _combinations(problem: Problem) -> Iterator[tuple[tuple[int, ...], float]]:
    """All numbers of replicas that the pools have GPUs for, with their costs; what is required among
    them."""
    free = dict(problem.pools)
    counts = [0] * len(problem.options)

    def extend(index: int, cost: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if index == len(counts):
            if problem.has_required(counts):
                yield tuple(counts), cost
            return
        option = problem.options[index]
        most = min(problem.most(option), free[option.pool] // option.gpus)
        for count in range(most + 1):
            counts[index] = count
            free[option.pool] -= option.gpus * count
            yield from extend(index + 1, cost + option.cost * count)
            free[option.pool] += option.gpus * count
        counts[index] = 0

    yield from extend(0, 0.0)
