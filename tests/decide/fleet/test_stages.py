"""Predicted latencies against plants that are played through step by step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.fleet.small_plant import quantile, run

from tokenmill.decide.fleet.first_tokens import ROUTED
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.stages import DecodeGroup, PrefillGroup
from tokenmill.decide.fleet.workload import Shape, Workload, steady
from tokenmill.decide.perf.step_time import LinearStepTime

TIMES = LinearStepTime(
    fixed_ms=16.0,
    prefill_token_ms=0.07,
    prefill_context_ms=1e-6,
    decode_sequence_ms=0.1,
    decode_context_ms=4e-5,
)
REPLICA = Replica(times=TIMES, kv_capacity_tokens=1e9)

KINDS = [(500.0, 0.0, 100), (3000.0, 0.0, 200), (1500.0, 500.0, 50), (6000.0, 0.0, 150)]
LOADS = {
    "long": (steady(3000, 150), lambda chance: (3000.0, 0.0, 150)),
    "short": (steady(150, 100), lambda chance: (150.0, 0.0, 100)),
    "mixed": (
        Workload(shapes=tuple(Shape(0.25, new + cached, cached, output) for new, cached, output in KINDS)),
        lambda chance: chance.choice(KINDS),
    ),
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("share", [0.4, 0.75])
def test_first_tokens_of_prefill_workers(load, workers, share):
    workload, shape = LOADS[load]
    group = PrefillGroup(replica=REPLICA, count=workers, workload=workload, chunk_tokens=2048)
    rate = group.most_rate * share
    played = run(
        TIMES,
        rate_per_s=rate * 1000,
        requests=5000,
        workers=workers,
        chunk=2048,
        shape=shape,
        decode=False,
    )
    ttft_ms = [each.ttft_ms for each in played]
    first = group.at(rate).first_token
    assert first.mean() == pytest.approx(sum(ttft_ms) / len(ttft_ms), rel=0.35)
    # The plant's one line is kinder than a router.
    routed = ROUTED if workers > 1 else 1.0
    for miss in (0.05, 0.01):
        ratio = first.quantile(miss) / quantile(ttft_ms, 1 - miss)
        assert 0.8 <= ratio <= 1.25 * routed


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [4.0, 40.0])
def test_time_between_tokens_of_decode_workers(load, workers, batch):
    workload, shape = LOADS[load]
    group = DecodeGroup(replica=REPLICA, count=workers, workload=workload)
    point = group.at_batch(batch)
    played = run(
        TIMES,
        rate_per_s=point.rate * 1000,
        requests=1500,
        workers=workers,
        chunk=2048,
        shape=shape,
        local=False,
        warm=0.2,
    )
    itl_ms = [each.itl_ms for each in played]
    assert point.itl_ms == pytest.approx(sum(itl_ms) / len(itl_ms), rel=0.05)
    assert point.itl_quantile(0.05) == pytest.approx(quantile(itl_ms, 0.95), rel=0.06)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("workers", "batch", "chunk"), [(2, 4.0, 512), (4, 8.0, 512), (4, 8.0, 2048)])
def test_workers_that_do_both(load, workers, batch, chunk):
    workload, shape = LOADS[load]
    group = DecodeGroup(
        replica=REPLICA, count=workers, workload=workload, chunk_tokens=chunk, local_share=1.0
    )
    point = group.at_batch(batch)
    played = run(
        TIMES,
        rate_per_s=point.rate * 1000,
        requests=2500,
        workers=workers,
        chunk=chunk,
        shape=shape,
        warm=0.2,
    )
    itl_ms, ttft_ms = [each.itl_ms for each in played], [each.ttft_ms for each in played]
    assert point.itl_ms == pytest.approx(sum(itl_ms) / len(itl_ms), rel=0.08)
    assert point.itl_quantile(0.05) == pytest.approx(quantile(itl_ms, 0.95), rel=0.2)
    assert point.first_token.mean() == pytest.approx(sum(ttft_ms) / len(ttft_ms), rel=0.15)
    assert point.first_token.quantile(0.05) == pytest.approx(quantile(ttft_ms, 0.95), rel=0.2)


@settings(deadline=None)
@given(st.floats(1, 200), st.sampled_from([0.0, 0.5, 1.0]))
def test_as_many_sequences_as_littles_law_says(batch, local_share):
    workload = steady(1000, 200)
    group = DecodeGroup(
        replica=REPLICA, count=3, workload=workload, chunk_tokens=1024, local_share=local_share
    )
    point = group.at_batch(batch)
    if point is not None:
        assert 3 * batch == pytest.approx(point.rate * workload.decode_steps * point.itl_ms, rel=0.005)


@settings(deadline=None)
@given(st.floats(0.5, 0.99))
def test_the_batch_at_a_rate_is_the_one_that_gives_it(share):
    group = DecodeGroup(replica=REPLICA, count=2, workload=steady(1000, 200))
    rate = group.at_batch(100.0).rate * share
    assert group.at(rate).rate == pytest.approx(rate, rel=1e-3)
    assert group.at(1e9) is None


def test_ranks_side_by_side_are_so_many_workers_with_steps_in_common():
    """A step of two ranks with n sequences each takes what one replica takes with 2n."""
    workload = steady(1000, 100)
    pair = Replica(times=TIMES, kv_capacity_tokens=1e6, side_by_side=2)
    two = DecodeGroup(replica=pair, count=1, workload=workload).at_batch(16.0)
    one = DecodeGroup(replica=REPLICA, count=1, workload=workload).at_batch(32.0)
    assert two.itl_ms == pytest.approx(one.itl_ms)
    assert two.rate == pytest.approx(one.rate)
    assert pair.lane_kv_tokens == pytest.approx(0.99 * 5e5)


def test_a_pipeline_works_on_several_batches_at_a_time():
    workload = steady(1000, 100)
    piped = Replica(times=TIMES, kv_capacity_tokens=1e6, pipelined=2)
    assert PrefillGroup(
        replica=piped, count=1, workload=workload, chunk_tokens=1024
    ).most_rate == pytest.approx(
        2 * PrefillGroup(replica=REPLICA, count=1, workload=workload, chunk_tokens=1024).most_rate
    )


def test_a_slow_handoff_is_seen_between_tokens():
    near = DecodeGroup(replica=REPLICA, count=1, workload=steady(1000, 101)).at_batch(10.0)
    far = DecodeGroup(replica=REPLICA, count=1, workload=steady(1000, 101), handoff_ms=500.0).at_batch(10.0)
    assert far.itl_ms == pytest.approx(near.itl_ms + 5.0)


def failing(group, amount, **limits):
    given = {"ttft_ms": 1e9, "miss": 0.05, **limits}
    return set(group.failures(amount, **given))


def test_each_limit_is_told_by_its_name():
    prefill = PrefillGroup(replica=REPLICA, count=1, workload=steady(3000, 150), chunk_tokens=2048)
    rate = prefill.most_rate
    assert failing(prefill, rate * 0.5) == set()
    assert failing(prefill, rate * 1.1) == {"rate"}
    assert failing(prefill, rate * 0.5, ttft_ms=100.0) == {"ttft"}
    small = Replica(times=TIMES, kv_capacity_tokens=2000)
    tight = PrefillGroup(replica=small, count=1, workload=steady(3000, 150), chunk_tokens=2048)
    assert failing(tight, rate * 0.5) == {"kv memory"}
    decode = DecodeGroup(replica=REPLICA, count=1, workload=steady(3000, 150), local_share=1.0)
    assert failing(decode, 4.0, itl_ms=100.0) == set()
    assert failing(decode, 4.0, itl_ms=20.0) == {"itl"}
    assert failing(decode, 4.0, itl_ms=100.0, ttft_ms=100.0) == {"ttft"}
    few = Replica(times=TIMES, kv_capacity_tokens=1e9, max_sequences=5)
    assert failing(DecodeGroup(replica=few, count=1, workload=steady(3000, 150)), 4.0, itl_ms=100.0) == {
        "batch limit"
    }
    full = Replica(times=TIMES, kv_capacity_tokens=15_000)
    assert failing(DecodeGroup(replica=full, count=1, workload=steady(3000, 150)), 4.0, itl_ms=100.0) == {
        "kv memory"
    }


def test_the_batch_limit_is_the_largest_that_keeps_the_time():
    group = DecodeGroup(replica=REPLICA, count=1, workload=steady(1000, 100))
    most = group.batch_within(25.0)
    context = group.workload.decode_context
    assert TIMES.decode_ms(most, most * context) <= 25.0 < TIMES.decode_ms(most + 1, (most + 1) * context)
    assert group.batch_within(1.0) == 1
