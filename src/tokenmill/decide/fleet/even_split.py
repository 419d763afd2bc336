"""Unequal decode workers side by side: what each of them gets from the router.

Exists because a router evens out how many sequences decode at each worker, whatever the workers are: a plan
that gave each kind as much as it could take would be one that nobody carries out. It must not know prices or
how the plant was found. Rates in requests a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.queueing import bisect
from tokenmill.decide.fleet.stages import DecodeGroup


class Even(NamedTuple):
    """``rates``: by group. ``holds``: each keeps the service level with what it gets."""

    rates: tuple[float, ...]
    holds: bool


def even_split(groups: Sequence[DecodeGroup], rate: float, promise: Promise) -> Even | None:
    """Return how groups share ``rate`` when every worker decodes as many sequences; None where they cannot
    serve it so."""

    def rates(sequences: float) -> tuple[float, ...] | None:
        points = [group.at_batch(sequences / group.replica.lanes) for group in groups]
        if any(point is None for point in points):
            return None
        return tuple(point.rate * 1000 for point in points if point is not None)

    def too_few(sequences: float) -> bool:
        found = rates(sequences)
        return found is not None and sum(found) < rate

    most = min(float(group.replica.max_sequences * group.replica.lanes) for group in groups)
    if too_few(most):
        return None
    sequences = bisect(too_few, 1e-3, most)
    found = rates(sequences)
    if found is None:
        return None
    holds = not any(
        next(
            group.failures(sequences / group.replica.lanes, promise.ttft_ms, promise.itl_ms, promise.miss), ""
        )
        for group in groups
    )
    total = sum(found)
    return Even(tuple(each * rate / total for each in found), holds)
