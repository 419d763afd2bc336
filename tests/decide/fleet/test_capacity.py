"""Capacities: they hold, in formulas and in a plant that is played through, and are not much too small."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.fleet.small_plant import run
from tests.decide.fleet.test_stages import LOADS, REPLICA, TIMES

from tokenmill.decide.fleet.capacity import (
    CHUNKS,
    Capacity,
    Curve,
    Promise,
    curve,
    curve_counts,
    decode_capacity,
    prefill_capacity,
)
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.workload import steady

PROMISE = Promise(ttft_ms=900.0, itl_ms=30.0, percentile=90.0)


def test_half_of_the_misses_each():
    assert PROMISE.miss == pytest.approx(0.05)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("workers", [1, 4])
def test_prefill_workers_at_capacity_keep_the_promise_when_played_through(load, workers):
    workload, shape = LOADS[load]
    capacity = prefill_capacity(REPLICA, workers, workload, PROMISE)
    played = run(
        TIMES,
        rate_per_s=capacity.rate * 0.98,
        requests=4000,
        workers=workers,
        chunk=capacity.chunk_tokens,
        shape=shape,
        decode=False,
    )
    late = sum(each.ttft_ms > PROMISE.ttft_ms for each in played) / len(played)
    assert late <= 2 * PROMISE.miss


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_that_do_both_keep_it_too(load, workers):
    workload, shape = LOADS[load]
    capacity = decode_capacity(REPLICA, workers, workload, PROMISE, local_share=1.0)
    played = run(
        TIMES,
        rate_per_s=capacity.rate * 0.98,
        requests=2500,
        workers=workers,
        chunk=capacity.chunk_tokens,
        shape=shape,
        warm=0.2,
    )
    missed = sum(each.ttft_ms > PROMISE.ttft_ms or each.itl_ms > PROMISE.itl_ms for each in played)
    assert missed / len(played) <= 1.3 * (1 - PROMISE.percentile / 100)


@pytest.mark.parametrize("load", LOADS)
def test_decode_workers_keep_it_and_have_little_to_spare(load):
    workload, shape = LOADS[load]
    capacity = decode_capacity(REPLICA, 2, workload, PROMISE)
    assert capacity.binding == "itl"
    shares = []
    for rate in (capacity.rate * 0.97, capacity.rate * 1.1):
        played = run(
            TIMES,
            rate_per_s=rate,
            requests=3000,
            workers=2,
            chunk=2048,
            shape=shape,
            local=False,
            warm=0.3,
        )
        shares.append(sum(each.itl_ms > PROMISE.itl_ms for each in played) / len(played))
    assert shares[0] <= 3 * PROMISE.miss
    assert shares[1] > PROMISE.miss


@settings(deadline=None)
@given(st.integers(1, 6), st.floats(300, 3000), st.floats(20, 60), st.sampled_from([50.0, 90.0, 99.0]))
def test_more_replicas_serve_more_than_their_share(count, ttft_ms, itl_ms, percentile):
    promise = Promise(ttft_ms=ttft_ms, itl_ms=itl_ms, percentile=percentile)
    workload = steady(2000, 150)
    for capacity in (prefill_capacity, decode_capacity):
        one, more = (capacity(REPLICA, n, workload, promise).rate for n in (count, count + 1))
        assert more * count >= one * (count + 1) * 0.999


@settings(deadline=None)
@given(st.floats(300, 3000), st.floats(20, 60))
def test_an_easier_promise_never_costs_capacity(ttft_ms, itl_ms):
    workload = steady(2000, 150)
    hard = Promise(ttft_ms=ttft_ms, itl_ms=itl_ms, percentile=95)
    easy = Promise(ttft_ms=ttft_ms * 1.2, itl_ms=itl_ms * 1.2, percentile=90)
    chunk = (1024,)
    for share in (0.0, 1.0):
        rates = [
            decode_capacity(REPLICA, 2, workload, promise, chunks=chunk, local_share=share).rate
            for promise in (hard, easy)
        ]
        assert rates[1] >= rates[0] * 0.999


@pytest.mark.parametrize(
    ("promise", "binding"),
    [
        (Promise(ttft_ms=100, itl_ms=50), "ttft"),
        (Promise(ttft_ms=5000, itl_ms=10), "itl"),
    ],
)
def test_a_promise_that_nobody_can_keep(promise, binding):
    capacity = decode_capacity(REPLICA, 4, steady(3000, 150), promise, local_share=1.0)
    assert (capacity.rate, capacity.binding) == (0.0, binding)


def test_memory_that_is_full_is_what_binds():
    small = Replica(times=TIMES, kv_capacity_tokens=40_000)
    capacity = decode_capacity(small, 1, steady(3000, 150), Promise(ttft_ms=1000, itl_ms=60))
    assert capacity.binding == "kv memory"
    roomy = decode_capacity(REPLICA, 1, steady(3000, 150), Promise(ttft_ms=1000, itl_ms=60))
    assert roomy.rate > capacity.rate > 0


def test_short_steps_for_a_tight_time_between_tokens():
    workload = steady(3000, 150)
    tight = decode_capacity(REPLICA, 4, workload, Promise(ttft_ms=3000, itl_ms=22), local_share=1.0)
    loose = decode_capacity(REPLICA, 4, workload, Promise(ttft_ms=3000, itl_ms=60), local_share=1.0)
    assert tight.chunk_tokens <= loose.chunk_tokens
    assert {tight.chunk_tokens, loose.chunk_tokens} <= set(CHUNKS)


def test_curves_are_exact_where_asked_and_straight_between():
    drawn = curve(lambda count, chunks: Capacity(float(count**1.5), "ttft", 512), 40, exact_to=4)
    counts = [count for count, _ in drawn.points]
    assert counts[:4] == [1, 2, 3, 4]
    assert counts[-1] == drawn.most == 40
    assert drawn.rate(0) == 0
    for count in counts:
        assert drawn.rate(count) == pytest.approx(count**1.5)
    low, high = counts[-2], counts[-1]
    between = drawn.rate((low + high) // 2)
    assert drawn.rate(low) < between < drawn.rate(high)
    with pytest.raises(ValueError, match="ends at 40"):
        drawn.rate(41)


def test_a_curve_of_nothing_is_empty():
    assert curve(lambda count, chunks: Capacity(0.0, "ttft", 512), 5, exact_to=8) == Curve(())
    assert curve(lambda count, chunks: Capacity(1.0, "ttft", 512), 0, exact_to=8) == Curve(())
    assert Curve(()).most == 0


def test_a_dent_in_a_curve_is_filled():
    rates = {1: 1.0, 2: 3.0, 3: 2.9}
    drawn = curve(lambda count, chunks: Capacity(rates[count], "ttft", 512), 3, exact_to=8)
    assert drawn.rate(3) == 3.0


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 16))
def test_curves_ask_for_few_numbers(most, exact_to):
    counts = curve_counts(most, exact_to=exact_to)
    assert counts == sorted(set(counts))
    assert counts[-1] == most
    assert len(counts) <= exact_to + 30
