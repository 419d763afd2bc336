"""The most that a group of workers serves within the service level, and what stops it from serving more.

Exists so that placement can search over numbers of replicas without knowing queues. It must not know prices
or other groups. Rates in requests a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from tokenmill.decide.fleet.queueing import bisect, miss_share
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.stages import DecodeGroup, PrefillGroup
from tokenmill.decide.fleet.workload import Workload

CHUNKS: Final = (256, 512, 1024, 2048, 4096, 8192)
"""Prefill tokens of a step that are tried: from where a step begins to be worth its fixed part, to where
activations begin to cost much memory."""

_LEAST: Final = 1e-3
"""A load so light that it stands for none: a share of a batch, and of the most rate."""

_STEPS: Final = 18
"""Halvings at most; small batches need them."""

_STILL_GOOD: Final = 0.99
"""A smaller chunk that gives at least this share of the best is preferred: it holds up fewer others."""


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """A service level: the share ``percentile`` (percent) of requests has its first token within
    ``ttft_ms`` and its mean time between tokens within ``itl_ms``. Requests may miss either, so that each
    gets half of the misses (the union bound)."""

    ttft_ms: float
    itl_ms: float
    percentile: float = 95.0

    @property
    def miss(self) -> float:
        """The share of requests that may miss each of the two."""
        return miss_share(self.percentile) / 2


class Capacity(NamedTuple):
    """``rate``: requests a second, 0 if the level cannot be held at all; ``binding``: what does not hold a
    little above it; ``chunk_tokens``: prefill tokens of a step."""

    rate: float
    binding: str
    chunk_tokens: float


def prefill_capacity(
    replica: Replica,
    count: int,
    workload: Workload,
    promise: Promise,
    *,
    chunks: Iterable[float] = CHUNKS,
    handoff_ms: float = 0.0,
) -> Capacity:
    """Return the most that ``count`` prefill workers hand over."""

    def of(chunk: float) -> Capacity:
        group = PrefillGroup(
            replica=replica, count=count, workload=workload, chunk_tokens=chunk, handoff_ms=handoff_ms
        )

        def failure(rate: float) -> str:
            return next(group.failures(rate, promise.ttft_ms, promise.miss), "")

        most = group.most_rate
        if found := failure(most * _LEAST):
            return Capacity(0.0, found, chunk)
        rate = bisect(lambda rate: not failure(rate), most * _LEAST, most * 0.9999, steps=_STEPS)
        return Capacity(rate * 1000, failure(rate * 1.005) or "rate", chunk)

    return _best(of, chunks)


def decode_capacity(
    replica: Replica,
    count: int,
    workload: Workload,
    promise: Promise,
    *,
    chunks: Iterable[float] = CHUNKS,
    local_share: float = 0.0,
    handoff_ms: float = 0.0,
) -> Capacity:
    """Return the most that ``count`` decoding workers serve, of whose prompts they compute
    ``local_share``."""

    def of(chunk: float) -> Capacity:
        group = DecodeGroup(
            replica=replica,
            count=count,
            workload=workload,
            chunk_tokens=chunk,
            local_share=local_share,
            handoff_ms=handoff_ms,
        )

        def failure(batch: float) -> str:
            return next(group.failures(batch, promise.ttft_ms, promise.itl_ms, promise.miss), "")

        if found := failure(_LEAST):
            return Capacity(0.0, found, chunk)
        most = min(replica.max_sequences, replica.lane_kv_tokens / workload.decode_context)
        batch = bisect(lambda batch: not failure(batch), _LEAST, most, steps=_STEPS)
        point = group.at_batch(batch)
        assert point is not None, "it held a moment ago"
        return Capacity(point.rate * 1000, failure(batch * 1.005 + 0.01) or "kv memory", chunk)

    return _best(of, chunks if local_share else (CHUNKS[0],))


def _best(of: Callable[[float], Capacity], chunks: Iterable[float]) -> Capacity:
    """Return the best chunk's capacity. It rises with the chunk up to a point and falls beyond, so that the
    way up from the middle finds it."""
    ordered = sorted(chunks)
    known: dict[int, Capacity] = {}

    def at(index: int) -> Capacity:
        if index not in known:
            known[index] = of(ordered[index])
        return known[index]

    best = len(ordered) // 2
    while True:
        around = [index for index in (best - 1, best + 1) if 0 <= index < len(ordered)]
        better = max(around, key=lambda index: at(index).rate, default=best)
        if at(better).rate <= at(best).rate:
            break
        best = better
    if not at(best).rate:
        for index in range(len(ordered)):
            best = max(best, index, key=lambda each: at(each).rate)
    good = at(best).rate * _STILL_GOOD
    return min((each for each in known.values() if each.rate >= good), key=lambda each: each.chunk_tokens)


class Curve(msgspec.Struct, frozen=True):
    """Capacity by number of replicas: at ``points`` of (replicas, requests a second), in between along a
    line.

    Groups share a line, so that the capacity of one replica grows with their number, ever more slowly; that
    is why few points tell it. At 0 replicas it is 0, beyond the last point nothing is known.
    """

    points: tuple[tuple[int, float], ...]

    @property
    def most(self) -> int:
        """The largest number of replicas."""
        return self.points[-1][0] if self.points else 0

    def rate(self, count: int) -> float:
        """Return the capacity of ``count`` replicas. Raises ValueError beyond the last point."""
        if count <= 0:
            return 0.0
        for (low, low_rate), (high, high_rate) in pairwise(((0, 0.0), *self.points)):
            if low < count <= high:
                return low_rate + (high_rate - low_rate) * (count - low) / (high - low)
        raise ValueError(f"{count} replicas: the curve ends at {self.most}")


def curve_counts(most: int, *, exact_to: int) -> list[int]:
    """Return at which numbers of replicas a curve is asked: all up to ``exact_to``, then each a third
    larger."""
    counts = list(range(1, min(most, exact_to) + 1))
    while counts and counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, counts[-1] * 4 // 3)))
    return counts


def curve(of: Callable[[int, Sequence[float]], Capacity], most: int, *, exact_to: int) -> Curve:
    """Ask ``of`` (a capacity of so many replicas with these chunks) along a curve. All chunks are tried at
    its ends, in between only what was best there."""
    counts = curve_counts(most, exact_to=exact_to)
    if not counts:
        return Curve(())
    ends = {count: of(count, CHUNKS) for count in (counts[0], counts[-1])}
    if not ends[counts[-1]].rate:
        return Curve(())
    chunks = sorted({each.chunk_tokens for each in ends.values() if each.rate})
    points, best = [], 0.0
    for count in counts:
        capacity = ends.get(count) or of(count, chunks)
        # The steps' sizes are few, so that small dents can be; a spare replica never costs capacity.
        best = max(best, capacity.rate)
        points.append((count, best))
    return Curve(tuple(points))
