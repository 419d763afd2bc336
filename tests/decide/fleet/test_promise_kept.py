"""Plants at their computed capacity, run by the real router and step scheduler on a virtual clock."""

import random

import pytest
from tests.decide.fleet.test_stages import REPLICA, TIMES

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.fleet.capacity import Promise, decode_capacity, prefill_capacity
from tokenmill.decide.fleet.stages import DecodeGroup, PrefillGroup
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.report import outcomes_of
from tokenmill.simulate.scene import LinkScene, Scene, StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

LOAD = steady(3000, 150)
PROMISE = Promise(ttft_ms=1000, itl_ms=30, percentile=90)


def stage(role, workers, capacity):
    batching = BatchingConfig(
        total_blocks=100_000,
        max_model_len=50_000,
        role=role,
        token_budget=int(capacity.chunk_tokens) + 256,
        prefill_budget=int(capacity.chunk_tokens),
        max_sequences=256,
    )
    times = ModelTimes(TIMES)
    return StageScene(
        name=role, role=role, workers=workers, batching=batching, times=times, kv_bytes_per_token=1.0
    )


def outcomes(stages, rate, mode, requests=700):
    chance, at_s, traced = random.Random(3), 0.0, []
    for _ in range(requests):
        at_s += chance.expovariate(rate)
        traced.append(TracedRequest(at_s, 3000, 150))
    scene = Scene(
        stages=stages,
        links=LinkScene(bytes_per_s=1000 / 0.004, latency_s=0.0005),
        router=RouterSettings(prefill=mode),
        message_delay_s=0.0005,
        seed=1,
    )
    return outcomes_of(simulate(scene, Trace(traced)))[requests // 5 :]


def kept(seen):
    good = sum(each.ttft_ms <= PROMISE.ttft_ms and each.tpot_ms <= PROMISE.itl_ms for each in seen)
    return good / len(seen)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_an_aggregated_plant():
    capacity = decode_capacity(REPLICA, 3, LOAD, PROMISE, local_share=1.0)
    point = DecodeGroup(
        replica=REPLICA, count=3, workload=LOAD, chunk_tokens=capacity.chunk_tokens, local_share=1.0
    ).at(capacity.rate / 1000)
    seen = outcomes([stage(Role.BOTH, 3, capacity)], capacity.rate, "local")
    assert kept(seen) >= 0.88
    assert point.itl_ms == pytest.approx(mean(each.tpot_ms for each in seen), rel=0.05)
    assert point.first_token.mean() == pytest.approx(mean(each.ttft_ms for each in seen), rel=0.25)


def test_a_disaggregated_plant():
    prefill = prefill_capacity(REPLICA, 3, LOAD, PROMISE)
    rate = prefill.rate
    decode = DecodeGroup(replica=REPLICA, count=1, workload=LOAD).at(rate / 1000)
    first = (
        PrefillGroup(replica=REPLICA, count=3, workload=LOAD, chunk_tokens=prefill.chunk_tokens)
        .at(rate / 1000)
        .first_token
    )
    seen = outcomes([stage(Role.PREFILL, 3, prefill), stage(Role.DECODE, 1, prefill)], rate, "remote")
    assert kept(seen) >= 0.88
    assert decode.itl_ms == pytest.approx(mean(each.tpot_ms for each in seen), rel=0.05)
    assert first.mean() == pytest.approx(mean(each.ttft_ms for each in seen), rel=0.25)
