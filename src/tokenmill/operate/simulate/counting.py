"""From a run's record to latencies, service level and curves. Plain functions over requests.

It must not know stages, prices or how figures are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tokenmill.decide.fleet.capacity import Promise
from tokenmill.operate.simulate.summary import Curve, Latency, Level, Spread
from tokenmill.simulate.record import GapHistogram, RequestRecord
from tokenmill.simulate.report import quantile
from tokenmill.spec.factory import Slo

_CURVE_POINTS: Final = 200
_TIME_BINS: Final = 80


def spread_of(values: Iterable[float]) -> Spread:
    """Sum up times, milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return Spread(count=0, mean=0.0, p50=0.0, p90=0.0, p95=0.0, p99=0.0, most=0.0)
    return Spread(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        most=ordered[-1],
    )


def spread_of_gaps(gaps: GapHistogram) -> Spread:
    """Sum up times between tokens."""
    return Spread(
        count=gaps.count,
        mean=gaps.mean_ms,
        p50=gaps.quantile_ms(0.5),
        p90=gaps.quantile_ms(0.9),
        p95=gaps.quantile_ms(0.95),
        p99=gaps.quantile_ms(0.99),
        most=gaps.most_s * 1000,
    )


def latency_of(requests: Sequence[RequestRecord], gaps: GapHistogram | None) -> Latency:
    """Return what served requests saw. ``gaps``: between their tokens, where they are known apart."""
    served = [each for each in requests if each.served]
    return Latency(
        ttft_ms=spread_of(each.ttft_ms for each in served),
        itl_ms=None if gaps is None else spread_of_gaps(gaps),
        tpot_ms=spread_of(tpot for each in served if (tpot := each.tpot_ms) is not None),
        e2e_ms=spread_of(each.whole_ms for each in served),
    )


def level_of(requests: Sequence[RequestRecord], slo: Slo, seconds: float) -> Level:
    """Return how far the service level was kept. A refused request is neither late nor slow, nor within."""
    within = late = slow = tokens = 0
    for each in requests:
        if not each.served:
            continue
        is_late = each.ttft_ms > slo.ttft_ms
        is_slow = (each.tpot_ms or 0.0) > slo.itl_ms
        late += is_late
        slow += is_slow
        if not (is_late or is_slow):
            within += 1
            tokens += each.output_tokens
    total = max(1, len(requests))
    return Level(
        slo=Promise(ttft_ms=slo.ttft_ms, itl_ms=slo.itl_ms, percentile=slo.percentile),
        within=within / total,
        late=late / total,
        slow=slow / total,
        kept=within / total >= slo.percentile / 100,
        goodput_per_s=_rate(within, seconds),
        goodput_tokens_per_s=_rate(tokens, seconds),
    )


def _rate(number: float, seconds: float) -> float:
    return number / seconds if seconds > 0 else 0.0


def shares_of(values: Iterable[float]) -> Curve:
    """Return the share of values that are no larger, at evenly spaced shares."""
    ordered = sorted(values)
    if not ordered:
        return Curve(x=[], y=[])
    shares = [index / _CURVE_POINTS for index in range(_CURVE_POINTS + 1)]
    return Curve(x=[quantile(ordered, share) for share in shares], y=shares)


def shares_of_gaps(gaps: GapHistogram) -> Curve:
    """Return the share of gaps that are no longer than each bin's lower end."""
    x, y, seen = [], [], 0
    for low_ms, count in gaps.bins_ms():
        x.append(low_ms)
        y.append(seen / gaps.count)
        seen += count
    if gaps.count:
        x.append(gaps.most_s * 1000)
        y.append(1.0)
    return thinned(Curve(x=x, y=y))


def thinned(curve: Curve, most: int = 2 * _CURVE_POINTS) -> Curve:
    """Return a curve of fewer points: every so many of them, and the last."""
    step = -(-len(curve.x) // most)
    if step <= 1:
        return curve
    kept = sorted({*range(0, len(curve.x), step), len(curve.x) - 1})
    return Curve(x=[curve.x[index] for index in kept], y=[curve.y[index] for index in kept])


def over_time(requests: Sequence[RequestRecord], length_s: float) -> tuple[Curve, Curve, Curve]:
    """Return arrivals a second, and the median and 95th percentile of the time to first token in
    milliseconds, by time of arrival."""
    width_s = max(length_s, 1e-9) / _TIME_BINS
    bins: list[list[float]] = [[] for _ in range(_TIME_BINS)]
    arrivals = [0] * _TIME_BINS
    for each in requests:
        index = min(_TIME_BINS - 1, int(each.arrived_s / width_s))
        arrivals[index] += 1
        if each.served:
            bins[index].append(each.ttft_ms)
    middles = [(index + 0.5) * width_s for index in range(_TIME_BINS)]
    some = [(at_s, sorted(values)) for at_s, values in zip(middles, bins, strict=True) if values]
    return (
        Curve(x=middles, y=[number / width_s for number in arrivals]),
        Curve(x=[at_s for at_s, _ in some], y=[quantile(values, 0.5) for _, values in some]),
        Curve(x=[at_s for at_s, _ in some], y=[quantile(values, 0.95) for _, values in some]),
    )
