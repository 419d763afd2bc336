"""Unequal decode workers under a router that evens out what they decode."""

import pytest
from tests.decide.fleet.fleets import ask, fleet, group
from tests.decide.fleet.test_stages import REPLICA, TIMES

from tokenmill.decide.fleet.capacity import Promise, decode_capacity
from tokenmill.decide.fleet.even_split import even_split
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.stages import DecodeGroup
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.protocol.ids import Role

LOAD = steady(3000, 150)
PROMISE = Promise(ttft_ms=1000, itl_ms=30, percentile=90)
SLOW = Replica(
    times=LinearStepTime(
        **{name: 1.7 * getattr(TIMES, name) for name in TIMES.__struct_fields__ if name.endswith("_ms")}
    ),
    kv_capacity_tokens=1e9,
)


def decoders(replica, count):
    return DecodeGroup(replica=replica, count=count, workload=LOAD)


def most(replica, count):
    return decode_capacity(replica, count, LOAD, PROMISE).rate


def test_equal_workers_share_by_their_number():
    split = even_split([decoders(REPLICA, 1), decoders(REPLICA, 3)], 4.0, PROMISE)
    assert split.rates[1] == pytest.approx(3 * split.rates[0], rel=1e-3)
    assert sum(split.rates) == pytest.approx(4.0)
    assert split.holds


def test_slow_workers_are_given_as_many_sequences_as_quick_ones():
    groups = [decoders(REPLICA, 1), decoders(SLOW, 1)]
    split = even_split(groups, 5.0, PROMISE)
    batches = [group.at(rate / 1000).batch for group, rate in zip(groups, split.rates, strict=True)]
    assert batches[0] == pytest.approx(batches[1], rel=0.01)
    assert split.rates[0] > split.rates[1]


def test_what_each_could_take_is_not_what_both_take_together():
    quick, slow = most(REPLICA, 1), most(SLOW, 1)
    assert 0 < slow < quick / 4
    groups = [decoders(REPLICA, 1), decoders(SLOW, 1)]
    assert not even_split(groups, 0.95 * (quick + slow), PROMISE).holds
    assert even_split(groups, 1.5 * slow, PROMISE).holds


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
