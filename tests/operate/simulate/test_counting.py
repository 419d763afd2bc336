"""Figures from a hand-made record: percentiles, goodput, curves, and where the money goes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.operate.simulate.costs import cost_of, local_share
from tokenmill.operate.simulate.counting import (
    latency_of,
    level_of,
    over_time,
    shares_of,
    shares_of_gaps,
    spread_of,
    thinned,
)
from tokenmill.operate.simulate.devices import Device
from tokenmill.operate.simulate.limits import Memory
from tokenmill.operate.simulate.speeds import Faster
from tokenmill.operate.simulate.summary import Curve
from tokenmill.protocol.ids import Role
from tokenmill.simulate.record import GapHistogram, RequestRecord, RunRecord, StageRecord
from tokenmill.simulate.scene import StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.spec.factory import Slo

SLO = Slo(ttft_ms=500, itl_ms=50, percentile=75)


def request(number: int = 0, **changes: object) -> RequestRecord:
    """Served: first token after 100 ms, then one each 10 ms."""
    plain = {
        "number": number,
        "arrived_s": float(number),
        "first_s": number + 0.1,
        "last_s": number + 0.2,
        "prompt_tokens": 1000,
        "output_tokens": 11,
        "prefill_worker": "p-0",
        "decode_worker": "d-0",
        "outcome": "served",
    }
    return RequestRecord(**{**plain, **changes})


def test_percentiles_lie_between_neighbours() -> None:
    spread = spread_of(float(value) for value in range(101))
    assert (spread.count, spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most) == (
        (101, 50, 50, 90, 95, 99, 100)
    )
    assert spread_of([]).count == 0
    one = spread_of([7.0])
    assert (one.p50, one.p99, one.mean) == (7, 7, 7)


def test_only_served_requests_have_latencies() -> None:
    lost = request(2, outcome="refused", reason="full", first_s=0.0, last_s=0.0, output_tokens=0)
    single = request(3, output_tokens=1, last_s=3.1)
    latency = latency_of([request(), request(1), lost, single], None)
    assert latency.itl_ms is None
    assert latency.ttft_ms.count == 3
    assert latency.ttft_ms.mean == pytest.approx(100)
    assert latency.tpot_ms.count == 2
    assert latency.tpot_ms.p50 == pytest.approx(10)
    assert latency.e2e_ms.most == pytest.approx(200)


def test_goodput_counts_what_kept_both_limits() -> None:
    late = request(1, first_s=1.7, last_s=1.8)
    slow = request(2, last_s=2.1 + 0.6)
    lost = request(3, outcome="refused")
    level = level_of([request(), late, slow, lost], SLO, 10.0)
    assert (level.within, level.late, level.slow) == (0.25, 0.25, 0.25)
    assert not level.kept
    assert level.goodput_per_s == pytest.approx(0.1)
    assert level.goodput_tokens_per_s == pytest.approx(1.1)
    assert level_of([request(), request(1), request(2), lost], SLO, 10.0).kept
    assert level_of([], SLO, 0.0).goodput_per_s == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_a_distribution_rises_from_least_to_most(values: list[float]) -> None:
    curve = shares_of(values)
    assert curve.x == sorted(curve.x)
    assert (curve.x[0], curve.x[-1]) == (min(values), max(values))
    assert (curve.y[0], curve.y[-1]) == (0, 1)


@given(st.lists(st.floats(1e-5, 10), min_size=1, max_size=300))
def test_gaps_are_a_distribution_too(values: list[float]) -> None:
    gaps = GapHistogram()
    for value in values:
        gaps.add(value)
    curve = shares_of_gaps(gaps)
    assert curve.x == sorted(curve.x)
    assert curve.y == sorted(curve.y)
    assert (curve.y[0], curve.y[-1]) == (0, 1)
    assert curve.x[-1] == pytest.approx(max(values) * 1000)


def test_no_values_are_no_curve() -> None:
    assert shares_of([]) == shares_of_gaps(GapHistogram()) == Curve(x=[], y=[])


def test_thinning_keeps_the_ends() -> None:
    curve = Curve(x=[float(x) for x in range(1001)], y=[float(x) for x in range(1001)])
    few = thinned(curve, 100)
    assert len(few.x) <= 101
    assert (few.x[0], few.x[-1]) == (0, 1000)
    assert thinned(few, 1000) is few


def test_what_requests_saw_over_time() -> None:
    requests = [request(number) for number in range(80)]
    requests[40] = request(40, first_s=42.0, last_s=43.0)
    arrivals, middle, high = over_time(requests, 79.0)
    assert sum(arrivals.y) * 79 / 80 == pytest.approx(80)
    assert max(middle.y) == pytest.approx(2000)
    assert middle.x[middle.y.index(max(middle.y))] == pytest.approx(40, abs=1)
    assert all(low <= top for low, top in zip(middle.y, high.y, strict=True))


def stage(name: str, role: Role) -> StageScene:
    times = LinearStepTime()
    batching = BatchingConfig(total_blocks=10_000, max_model_len=10_000, role=role, max_sequences=64)
    return StageScene(name=name, role=role, workers=1, batching=batching, times=ModelTimes(times))


def device(dollars: float | None, speedup: float = 1.0) -> Device:
    times = Faster(LinearStepTime(), speedup)
    return Device(
        times=times, memory=Memory(tokens=1, bytes_per_token=1), origin="sim", dollars_per_hour=dollars
    )


def a_run(requests: list[RequestRecord], roles: dict[str, Role]) -> RunRecord:
    stages = [StageRecord(name=name, role=role, worker_s=3600.0) for name, role in roles.items()]
    return RunRecord(requests=requests, gaps=GapHistogram(), stages=stages, makespan_s=3600.0)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 100), st.floats(0.1, 100))
def test_prices_times_tokens_are_the_money_spent(seed: int, prefill: float, decode: float) -> None:
    chance = random.Random(seed)
    requests = []
    for number in range(20):
        prompt = chance.randrange(2, 5000)
        requests.append(
            request(
                number,
                prompt_tokens=prompt,
                cached_tokens=chance.randrange(prompt),
                output_tokens=chance.randrange(1, 500),
                prefill_worker=chance.choice(["p-0", "d-0"]),
            )
        )
    stages = [stage("p", Role.PREFILL), stage("d", Role.DECODE)]
    run = a_run(requests, {"p": Role.PREFILL, "d": Role.DECODE})
    cost = cost_of(run, stages, {"p": device(prefill), "d": device(decode)}, None)
    assert cost is not None
    assert cost.dollars == pytest.approx(prefill + decode)
    prices = cost.per_million
    cached = sum(each.cached_tokens for each in requests)
    new = sum(each.prompt_tokens for each in requests) - cached
    output = sum(each.output_tokens for each in requests)
    spent = (prices.input or 0) * new + (prices.cached or 0) * cached + (prices.output or 0) * output
    assert spent / 1e6 == pytest.approx(cost.dollars, rel=1e-6)


def test_a_prefill_stage_is_paid_by_prompts_and_a_pure_decode_stage_by_outputs() -> None:
    stages = [stage("p", Role.PREFILL), stage("d", Role.DECODE)]
    run = a_run([request(each) for each in range(10)], {"p": Role.PREFILL, "d": Role.DECODE})
    cost = cost_of(run, stages, {"p": device(2.0), "d": device(3.0)}, 7.0)
    assert cost is not None
    assert cost.per_million.input == pytest.approx(2.0 / 10_000 * 1e6)
    assert cost.per_million.output == pytest.approx(3.0 / 110 * 1e6)
    assert cost.per_million.cached is None
    assert cost.income == 7.0


def test_without_prices_there_is_no_cost() -> None:
    stages = [stage("d", Role.BOTH)]
    run = a_run([request()], {"d": Role.BOTH})
    assert cost_of(run, stages, {"d": device(None)}, None) is None
    nobody = a_run([request(outcome="refused")], {"d": Role.BOTH})
    assert cost_of(nobody, stages, {"d": device(1.0)}, None) is None


def test_an_engine_that_takes_no_time_costs_all_the_same() -> None:
    cost = cost_of(a_run([request()], {"d": Role.BOTH}), [stage("d", Role.BOTH)], {"d": device(1.0, 0)}, None)
    assert cost is not None
    assert cost.dollars == pytest.approx(1.0)


def test_prompts_computed_where_they_are_decoded_are_counted_by_stage() -> None:
    served = [
        request(prefill_worker="d-0", decode_worker="d-0"),
        request(prefill_worker="d-1.2", decode_worker="d-1.2"),
        request(prefill_worker="p-0", decode_worker="d-1"),
        request(prefill_worker="p-0", decode_worker="d-0"),
        request(prefill_worker="d-x-0", decode_worker="d-x-0"),
    ]
    assert local_share(stage("d", Role.DECODE), served) == 0.5
    assert local_share(stage("d-x", Role.DECODE), served) == 1.0
    assert local_share(stage("e", Role.DECODE), served) == 0.0
