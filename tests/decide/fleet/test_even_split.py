"""Unequal decode workers under a router that evens out how full they are."""

import pytest
from tests.decide.fleet.fleets import ask, fleet, group
from tests.decide.fleet.test_stages import REPLICA, TIMES

from tokenmill.decide.fleet.capacity import Promise, decode_capacity
from tokenmill.decide.fleet.even_split import even_split
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.stages import DecodeGroup
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.decode_batch import most_sequences
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.protocol.ids import Role

LOAD = steady(3000, 150)
PROMISE = Promise(ttft_ms=1000, itl_ms=30, percentile=90)


def slower(factor):
    times = {name: factor * getattr(TIMES, name) for name in TIMES.__struct_fields__ if name.endswith("_ms")}
    return Replica(times=LinearStepTime(**times), kv_capacity_tokens=1e9)


SLOW = slower(1.5)


def decoders(replica, count):
    return DecodeGroup(replica=replica, count=count, workload=LOAD)


def most(replica, count):
    return decode_capacity(replica, count, LOAD, PROMISE).rate


def test_equal_workers_share_by_their_number():
    split = even_split([decoders(REPLICA, 1), decoders(REPLICA, 3)], 4.0, PROMISE)
    assert split.rates[1] == pytest.approx(3 * split.rates[0], rel=1e-3)
    assert sum(split.rates) == pytest.approx(4.0)
    assert split.holds


def test_slow_workers_are_given_sequences_by_how_many_they_can_decode():
    groups = [decoders(REPLICA, 1), decoders(SLOW, 1)]
    split = even_split(groups, 5.0, PROMISE)
    found = [group.at(rate / 1000).batch for group, rate in zip(groups, split.rates, strict=True)]
    able = [
        most_sequences(each.times, itl_ms=PROMISE.itl_ms, context_tokens=LOAD.decode_context)
        for each in (REPLICA, SLOW)
    ]
    assert able[0] > able[1]
    assert found[0] / found[1] == pytest.approx(able[0] / able[1], rel=0.02)


@pytest.mark.parametrize("slowness", [1.2, 1.4, 1.6])
def test_what_each_could_take_is_nearly_what_both_take_together(slowness):
    slow = slower(slowness)
    groups = [decoders(REPLICA, 1), decoders(slow, 1)]
    both = most(REPLICA, 1) + most(slow, 1)
    assert even_split(groups, 0.9 * both, PROMISE).holds
    assert not even_split(groups, 1.1 * both, PROMISE).holds


def test_a_worker_that_cannot_keep_the_level_at_all_spoils_no_plant_of_others():
    groups = [decoders(REPLICA, 1), decoders(slower(2.5), 1)]
    assert most(slower(2.5), 1) == 0
    assert not even_split(groups, 0.5 * most(REPLICA, 1), PROMISE).holds


def test_more_than_they_can_do_at_all_is_no_split():
    assert even_split([decoders(REPLICA, 1), decoders(SLOW, 1)], 1e4, PROMISE) is None


def test_a_plan_gives_no_worker_more_than_the_router_would():
    asked = ask(ttft=2000, itl=30)
    inventory, candidates, unfit = fleet(group("H100"), group("A100"))
    plan = place(asked, candidates, inventory, unfit)
    plants = [plan.best, *(each.plant for each in plan.runners_up if each.plant is not None)]
    for plant in plants:
        decoding = [stage for stage in plant.stages if stage.role is not Role.PREFILL]
        shares = [stage.rate_per_s / stage.replicas for stage in decoding]
        assert all(stage.itl_ms <= 30 * 1.001 for stage in decoding)
        assert max(shares) < 2.5 * min(shares)
