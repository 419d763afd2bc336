import random

import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.plan.demand import cached_tokens, demand_of
from tokenmill.simulate.traces import Trace, TracedRequest


def poisson(rate, seconds, *, seed=2, prompt=1000, output=100):
    chance, now, requests = random.Random(seed), 0.0, []
    while (now := now + chance.expovariate(rate)) < seconds:
        requests.append(TracedRequest(now, prompt, output))
    return requests


def test_even_traffic_is_taken_as_it_is():
    demand = demand_of(Trace(poisson(5.0, 600)), reuse_s=300)
    assert demand.rate_per_s == pytest.approx(5.0, rel=0.1)
    assert demand.workload.burstiness == pytest.approx(1.0, abs=0.6)
    assert demand.workload.prompt_tokens == pytest.approx(1000)
    assert demand.workload.cached_tokens == 0


def test_the_plan_is_for_the_busiest_stretch():
    calm = poisson(1.0, 1800)
    rush = [TracedRequest(r.at_s + 1800, r.prompt_tokens, r.output_tokens) for r in poisson(9.0, 300, seed=3)]
    demand = demand_of(Trace(calm + rush), reuse_s=300)
    assert demand.rate_per_s == pytest.approx(9.0, rel=0.1)


def test_bursts_are_seen():
    bursts = [TracedRequest(start + i * 0.01, 1000, 100) for start in range(0, 600, 60) for i in range(50)]
    assert demand_of(Trace(bursts), reuse_s=300).workload.burstiness > 5


def test_a_prefix_is_cached_while_it_is_fresh():
    trace = Trace(
        [
            TracedRequest(0.0, 1024, 10, (1, 2)),
            TracedRequest(10.0, 1500, 10, (1, 2, 3)),
            TracedRequest(500.0, 1024, 10, (1, 2)),
            TracedRequest(501.0, 1024, 10, (1, 2)),
            TracedRequest(502.0, 1024, 10, (9, 2)),
        ],
        512,
    )
    assert cached_tokens(trace, reuse_s=300) == [0, 1024, 0, 1023, 0]


def test_a_single_request_tells_no_rate():
    assert demand_of(Trace([TracedRequest(0.0, 10, 10)]), reuse_s=300).rate_per_s is None


def test_an_empty_trace_is_refused():
    with pytest.raises(ConfigError, match="no requests"):
        demand_of(Trace([]), reuse_s=300)


def test_another_rate_is_a_plan_for_the_same_lengths():
    demand = demand_of(Trace(poisson(5.0, 600)), reuse_s=300)
    assert demand.at(50.0).rate_per_s == 50.0
    assert demand.at(50.0).workload == demand.workload
