"""The figures of a run, in one flat value.

Exists for benchmarks and tests that compare runs. It must not know how the run came about.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from tokenmill.simulate.record import RunRecord


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run's result. Times in milliseconds; ``makespan_s`` from the first arrival to the last token.

    ``prefix_hit``: prompt tokens found in a cache at first admission, of all prompt tokens. TTFT: arrival to
    first token. ITL: between two tokens of a request, over all such pairs (its quantiles are right to 0.3 %).
    TPOT: a request's mean ITL, over requests of two or more tokens.
    """

    requests: int
    refused: int
    prefix_hit: float
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_mean_ms: float
    itl_p99_ms: float
    tpot_mean_ms: float
    tpot_p99_ms: float
    makespan_s: float


class Outcome(NamedTuple):
    """What one served request saw, milliseconds. ``tpot_ms``: None for a single token."""

    arrived_s: float
    ttft_ms: float
    tpot_ms: float | None
    whole_ms: float


def outcomes_of(run: RunRecord) -> list[Outcome]:
    """Return what each served request saw, in the order of arrival."""
    return [
        Outcome(each.arrived_s, each.ttft_ms, each.tpot_ms, each.whole_ms)
        for each in run.requests
        if each.served
    ]


def figures_of(run: RunRecord) -> Figures:
    """Sum up a run; raises ValueError when no request was served."""
    served = [each for each in run.requests if each.served]
    if not served:
        raise ValueError("no request was served: there is nothing to report")
    ttft_ms = sorted(each.ttft_ms for each in served)
    tpot_ms = sorted(tpot for each in served if (tpot := each.tpot_ms) is not None) or [0.0]
    return Figures(
        requests=len(run.requests),
        refused=len(run.requests) - len(served),
        prefix_hit=sum(e.cached_tokens for e in served) / sum(e.prompt_tokens for e in served),
        ttft_mean_ms=_mean(ttft_ms),
        ttft_p50_ms=quantile(ttft_ms, 0.50),
        ttft_p99_ms=quantile(ttft_ms, 0.99),
        itl_mean_ms=run.gaps.mean_ms,
        itl_p99_ms=run.gaps.quantile_ms(0.99),
        tpot_mean_ms=_mean(tpot_ms),
        tpot_p99_ms=quantile(tpot_ms, 0.99),
        makespan_s=run.makespan_s,
    )


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of ``ordered`` lies, interpolated between its neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
