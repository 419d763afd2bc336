"""Unequal decode workers side by side: what each of them gets from the router.

Exists because a router evens out how full workers are by its own measure (``decide.perf.decode_batch``: how
many sequences each can decode at a time): a plan that gave each kind as much as it could take would be one
that nobody carries out. It must not know prices or how the plant was found. Rates in requests a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.queueing import bisect
from tokenmill.decide.fleet.stages import DecodeGroup
from tokenmill.decide.perf.decode_batch import most_sequences, weights_of


class Even(NamedTuple):
    """``rates``: by group. ``holds``: each keeps the service level with what it gets."""

    rates: tuple[float, ...]
    holds: bool


def even_split(groups: Sequence[DecodeGroup], rate: float, promise: Promise) -> Even | None:
    """Return how groups share ``rate`` when every worker is as full as the others; None where they cannot
    serve it so."""
    weights = weights_of(
        most_sequences(
            group.replica.times,
            itl_ms=promise.itl_ms,
            context_tokens=group.workload.decode_context,
            room_tokens=group.replica.kv_capacity_tokens,
            limit=group.batch_within(promise.itl_ms),
        )
        for group in groups
    )
    lanes = [group.replica.lanes * weight for group, weight in zip(groups, weights, strict=True)]

    def batches(sequences: float) -> list[float]:
        """By group, in a lane: ``sequences`` on the worker that can decode most."""
        return [sequences / each for each in lanes]

    def rates(sequences: float) -> tuple[float, ...] | None:
        points = [group.at_batch(batch) for group, batch in zip(groups, batches(sequences), strict=True)]
        if any(point is None for point in points):
            return None
        return tuple(point.rate * 1000 for point in points if point is not None)

    def too_few(sequences: float) -> bool:
        found = rates(sequences)
        return found is not None and sum(found) < rate

    most = min(group.replica.max_sequences * each for group, each in zip(groups, lanes, strict=True))
    if too_few(most):
        return None
    sequences = bisect(too_few, 1e-3, most)
    found = rates(sequences)
    if found is None:
        return None
    holds = not any(
        next(group.failures(batch, promise.ttft_ms, promise.itl_ms, promise.miss), "")
        for group, batch in zip(groups, batches(sequences), strict=True)
    )
    total = sum(found)
    return Even(tuple(each * rate / total for each in found), holds)
