"""How much a set of replicas serves: which prefill replicas work for which decoding ones.

Exists because caches can move only over links that are there and wide enough. It must not know costs or how
the set was found. Decoding options that need the least prefill a request are served first, each with as
much as can reach it; for flows that end in weighted sinks that greedy order is the optimum (the flows'
values form a polymatroid: Edmonds 1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tokenmill.decide.fleet.problem import Problem

_SOURCE, _LEAST = "source", 1e-12


class Flow(NamedTuple):
    """``rate``: requests a second served in all; ``served``: by option (0 for prefill); ``computed``:
    prompts a second by prefill option; ``moved``: caches a second from place to place."""

    rate: float
    served: tuple[float, ...]
    computed: tuple[float, ...]
    moved: dict[tuple[str, str], float]

    def scaled(self, share: float) -> Flow:
        """Return the same with all flows ``share`` as large."""
        return Flow(
            self.rate * share,
            tuple(each * share for each in self.served),
            tuple(each * share for each in self.computed),
            {pair: each * share for pair, each in self.moved.items()},
        )


class _Network:
    """Residual capacities of a small graph."""

    def __init__(self) -> None:
        self.left: dict[str, dict[str, float]] = {}

    def edge(self, start: str, end: str, capacity: float) -> None:
        self.left.setdefault(start, {})[end] = capacity
        self.left.setdefault(end, {}).setdefault(start, 0.0)

    def push(self, end: str, most: float) -> float:
        """Move as much as possible, at most ``most``, from the source to ``end``; return how much."""
        moved = 0.0
        while moved < most - _LEAST and (path := self._path(end)):
            step = min(most - moved, *(self.left[a][b] for a, b in path))
            for a, b in path:
                self.left[a][b] -= step
                self.left[b][a] += step
            moved += step
        return moved

    def _path(self, end: str) -> list[tuple[str, str]]:
        before: dict[str, str] = {_SOURCE: ""}
        queue = deque([_SOURCE])
        while queue and end not in before:
            node = queue.popleft()
            for after, left in self.left.get(node, {}).items():
                if left > _LEAST and after not in before:
                    before[after] = node
                    queue.append(after)
        path = []
        while end != _SOURCE:
            if end not in before:
                return []
            path.append((before[end], end))
            end = before[end]
        return path


def throughput(problem: Problem, counts: Sequence[int]) -> Flow:
    """Return the most that ``counts`` replicas of the options serve, and how."""
    options = problem.options
    rates = [option.curve.rate(count) for option, count in zip(options, counts, strict=True)]
    place = _only_place(problem)
    if place is not None:
        return _from_one_place(problem, rates, place)
    network, places = _Network(), dict.fromkeys((o.place for o in options if o.prefill), 0.0)
    for option, rate in zip(options, rates, strict=True):
        if option.prefill:
            places[option.place] += rate
    for place, rate in places.items():
        network.edge(_SOURCE, f"from {place}", rate)
    served = [0.0] * len(options)
    order = sorted((i for i, o in enumerate(options) if not o.prefill), key=lambda i: options[i].remote)
    for index in order:
        option, rate = options[index], rates[index]
        if not option.remote or not rate:
            served[index] = rate
            continue
        end = f"to {index}"
        for place in places:
            if place in option.accepts:
                link = f"link {place} {option.place}"
                if link not in network.left:
                    limit = problem.links.get((place, option.place), float("inf"))
                    network.edge(f"from {place}", link, limit)
                network.edge(link, end, float("inf"))
        served[index] = network.push(end, rate * option.remote) / option.remote
    return Flow(
        sum(served), tuple(served), _computed(problem, rates, places, network), _moved(problem, network)
    )


def _only_place(problem: Problem) -> str | None:
    """Where all prefill options stand, if that is one place, all others accept it, and no link is limited:
    the usual case, and most of the time that trying all takes."""
    places = {option.place for option in problem.options if option.prefill}
    if len(places) != 1 or problem.links:
        return None
    (place,) = places
    accepted = all(place in option.accepts for option in problem.options if option.remote)
    return place if accepted else None


def _from_one_place(problem: Problem, rates: Sequence[float], place: str) -> Flow:
    """The same as over the network, without one."""
    options = problem.options
    whole = sum(rate for option, rate in zip(options, rates, strict=True) if option.prefill)
    left = whole
    moved: dict[tuple[str, str], float] = {}
    served = [0.0] * len(options)
    for index in sorted((i for i, o in enumerate(options) if not o.prefill), key=lambda i: options[i].remote):
        option, rate = options[index], rates[index]
        if not option.remote:
            served[index] = rate
            continue
        sent = min(left, rate * option.remote)
        left -= sent
        served[index] = sent / option.remote
        if sent > _LEAST:
            moved[place, option.place] = moved.get((place, option.place), 0.0) + sent
    share = (whole - left) / whole if whole else 0.0
    computed = tuple(
        rate * share if option.prefill else 0.0 for option, rate in zip(options, rates, strict=True)
    )
    return Flow(sum(served), tuple(served), computed, moved)


def _computed(
    problem: Problem, rates: Sequence[float], places: dict[str, float], network: _Network
) -> tuple[float, ...]:
    """A place's prompts go to its prefill options by what they can do."""
    used = {
        place: (rate - network.left[_SOURCE][f"from {place}"]) / rate if rate else 0.0
        for place, rate in places.items()
    }
    return tuple(
        rate * used[option.place] if option.prefill else 0.0
        for option, rate in zip(problem.options, rates, strict=True)
    )


def _moved(problem: Problem, network: _Network) -> dict[tuple[str, str], float]:
    places = {option.place for option in problem.options}
    moved = {}
    for start in places:
        for end in places:
            flow = network.left.get(f"link {start} {end}", {}).get(f"from {start}", 0.0)
            if flow > _LEAST:
                moved[start, end] = flow
    return moved
