"""Decode workers of three devices in one plant, on the virtual clock: told apart, they hold the level."""

import random

import pytest
from tests.decide.fleet.fleets import fleet, group

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.fleet.capacity import CHUNKS, Promise
from tokenmill.decide.fleet.options import Ask
from tokenmill.decide.fleet.options import Role as Work
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.scene import LinkScene, Scene, StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

PROMPT, OUTPUT = 1000, 300
PROMISE = Promise(ttft_ms=1000, itl_ms=50, percentile=90)
LINK = LinkScene(bytes_per_s=1e11, latency_s=0.0005)
LOAD = 0.95
"""Of the sum of what each could serve alone within the level."""


@pytest.fixture(scope="module")
def engines():
    _, candidates, _ = fleet(group("H100", nodes=2), group("A100", nodes=2), group("L40S", nodes=2))

    def engine(name, tp):
        return next(
            each
            for each in candidates
            if (each.group.name, each.parallel.tp, each.parallel.pp) == (name, tp, 1)
        )

    return engine("h100", 2), engine("a100", 2), engine("l40s", 8)


def stage(name, role, engine, workers, told):
    times = engine.replica.times
    batching = BatchingConfig(
        total_blocks=int(engine.replica.kv_capacity_tokens / 16),
        max_model_len=PROMPT + OUTPUT,
        role=role,
        token_budget=2560,
        prefill_budget=2048,
        max_sequences=512,
    )
    return StageScene(
        name=name,
        role=role,
        workers=workers,
        batching=batching,
        times=ModelTimes(times),
        kv_bytes_per_token=engine.kv_bytes_per_token,
        step_table=times.table if told else None,
    )


def ran(engines, *, told, requests=1500, jump=True):
    ask = Ask(workload=steady(PROMPT, OUTPUT), promise=PROMISE)
    rate = LOAD * sum(Work(each, False, 0.0, 5.0).capacity(1, CHUNKS, ask).rate for each in engines)
    chance, at_s, traced = random.Random(3), 0.0, []
    for _ in range(requests):
        at_s += chance.expovariate(rate)
        traced.append(TracedRequest(at_s, PROMPT, OUTPUT))
    decoders = [stage(f"decode{n}", Role.DECODE, each, 1, told) for n, each in enumerate(engines)]
    scene = Scene(
        stages=[stage("prefill", Role.PREFILL, engines[0], 8, told), *decoders],
        links=LINK,
        same_host=LINK,
        router=RouterSettings(prefill="remote", itl_ms=PROMISE.itl_ms),
        seed=1,
    )
    return simulate(scene, Trace(traced), jump=jump)


def kept(run):
    seen = run.requests[len(run.requests) // 4 :]
    return sum(each.ttft_ms <= PROMISE.ttft_ms and each.tpot_ms <= PROMISE.itl_ms for each in seen) / len(
        seen
    )


def test_unequal_workers_hold_the_level_when_they_tell_their_step_times(engines):
    assert kept(ran(engines, told=True)) >= 0.9


def test_they_do_not_when_each_is_given_as_many_sequences(engines):
    assert kept(ran(engines, told=False)) < 0.7


def test_jumps_change_nothing(engines):
    jumped, stepped = (ran(engines, told=True, requests=150, jump=jump) for jump in (True, False))
    assert jumped.requests == stepped.requests
