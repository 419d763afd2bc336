"""What a trace asks of a plant: lengths, what is cached, how fast and how unevenly requests come.

Exists as the way from a trace to what placement takes. It must not know files' formats or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tokenmill.decide.fleet.workload import Workload, from_requests
from tokenmill.simulate.traces import Trace, TracedRequest

BUSY_S: Final = 300.0
"""The plan is for the busiest stretch of so many seconds, or for the whole of a shorter trace."""

_COUNT_S: Final = 10.0
"""Arrivals are counted in slots of so many seconds to see how unevenly they come: longer than the steps in
which some traces tell time, shorter than what a queue forgets."""

_MOST_BURSTY: Final = 10.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """``rate_per_s``: requests a second; None: as many as can be. ``words``: where it is from."""

    workload: Workload
    rate_per_s: float | None
    words: str = "isl, osl"

    def at(self, rate_per_s: float) -> Demand:
        """Return the same at another rate."""
        return msgspec.structs.replace(self, rate_per_s=rate_per_s)


def demand_of(trace: Trace, *, reuse_s: float) -> Demand:
    """Sum up a trace. A prefix counts as cached when a request within ``reuse_s`` seconds before had it; a
    plant with less KV memory than that takes will find less. Raises ConfigError for an empty trace."""
    cached = cached_tokens(trace, reuse_s=reuse_s)
    burst, rate = _burstiness_and_rate(trace.requests)
    workload = from_requests(
        (
            (request.prompt_tokens, found, request.output_tokens)
            for request, found in zip(trace.requests, cached, strict=True)
        ),
        burstiness=burst,
    )
    share = workload.cached_tokens / workload.prompt_tokens
    words = (
        f"trace of {len(trace.requests)} requests, its busiest {BUSY_S / 60:g} minutes; {share:.0%} cached"
    )
    return Demand(workload=workload, rate_per_s=rate, words=words)


def cached_tokens(trace: Trace, *, reuse_s: float) -> list[int]:
    """Return for each request how many of its prompt tokens an earlier one within ``reuse_s`` seconds had."""
    seen: dict[int, float] = {}
    found = []
    for request in trace.requests:
        blocks = 0
        for prefix_id in request.prefix_ids:
            last_s = seen.get(prefix_id)
            if last_s is None or request.at_s - last_s > reuse_s:
                break
            blocks += 1
        for prefix_id in request.prefix_ids:
            seen[prefix_id] = request.at_s
        # The last token is always computed: it is where the first output token comes from.
        found.append(min(blocks * trace.prefix_block_tokens, request.prompt_tokens - 1))
    return found


def _burstiness_and_rate(requests: Sequence[TracedRequest]) -> tuple[float, float | None]:
    """Over the busiest stretch: the variance of arrivals in a slot over their mean, which for a renewal
    process tends to the squared coefficient of variation of its gaps (Cox and Lewis 1966); and requests a
    second."""
    if len(requests) < 2:
        return 1.0, None
    times = [request.at_s for request in requests]
    length_s = min(BUSY_S, times[-1] - times[0])
    if length_s <= 0:
        return 1.0, None
    start, most = 0, (0, 0)
    for end, at_s in enumerate(times):
        while at_s - times[start] > length_s:
            start += 1
        most = max(most, (end - start + 1, start))
    number, first = most
    slots = [0] * max(1, int(length_s / _COUNT_S))
    for at_s in times[first : first + number]:
        slot = int((at_s - times[first]) / _COUNT_S)
        if slot < len(slots):
            slots[slot] += 1
    mean = sum(slots) / len(slots)
    if len(slots) < 5 or not mean:
        return 1.0, number / length_s
    variance = sum((count - mean) ** 2 for count in slots) / (len(slots) - 1)
    return min(_MOST_BURSTY, max(1.0, variance / mean)), number / length_s
