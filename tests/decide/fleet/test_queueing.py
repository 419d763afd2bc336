"""The formulas against textbook values and against a line of customers that is simply played through."""

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.fleet.queueing import (
    FirstToken,
    Own,
    Wait,
    bisect,
    crowd,
    miss_share,
    normal_beyond,
    pooled_wait,
    standard_score,
    wait_chance,
)


def test_erlang_c_has_its_textbook_values():
    assert wait_chance(1, 0.7) == pytest.approx(0.7)
    assert wait_chance(2, 1.0) == pytest.approx(1 / 3)
    assert wait_chance(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert wait_chance(3, 0.0) == 0.0
    assert wait_chance(3, 3.0) == 1.0
    assert 0 < wait_chance(500, 480) < 1


def test_one_worker_waits_as_pollaczek_and_khinchine_say():
    rate, service = 0.008, 100.0
    for scv in (0.0, 1.0, 3.0):
        wait = pooled_wait(rate, 1, service, scv)
        exact = rate * service**2 * (1 + scv) / 2 / (1 - rate * service)
        assert wait.mean() == pytest.approx(exact)


def test_who_cannot_keep_up_waits_for_ever():
    assert pooled_wait(0.02, 2, 100.0, 0.0) is None
    assert pooled_wait(0.0199, 2, 100.0, 0.0) is not None


def line(rate, servers, service, *, customers=60_000, seed=5):
    """Waits in a first-come, first-served line."""
    chance = random.Random(seed)
    free, now, waits = [0.0] * servers, 0.0, []
    heapq.heapify(free)
    for _ in range(customers):
        now += chance.expovariate(rate)
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + service(chance))
        waits.append(start - now)
    return waits


@pytest.mark.parametrize("servers", [1, 3, 12])
@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(
    ("service", "mean", "scv"),
    [
        (lambda chance: 100.0, 100.0, 0.0),
        (lambda chance: chance.expovariate(0.01), 100.0, 1.0),
        (lambda chance: chance.choice([20.0, 180.0]), 100.0, 0.64),
    ],
    ids=["even", "exponential", "two lengths"],
)
def test_lines_that_are_played_through_are_as_predicted(servers, load, service, mean, scv):
    rate = load * servers / mean
    waits = line(rate, servers, service)
    wait = pooled_wait(rate, servers, mean, scv)
    assert wait.chance == pytest.approx(sum(w > 0 for w in waits) / len(waits), abs=0.04)
    assert wait.mean() == pytest.approx(sum(waits) / len(waits), rel=0.2, abs=1.0)
    for share in (0.9, 0.95, 0.99):
        played = sorted(waits)[int(share * len(waits))]
        limit = bisect(lambda ms, share=share: wait.line_beyond(ms) * wait.chance > 1 - share, 0.0, 1e5)
        assert limit == pytest.approx(played, rel=0.25, abs=0.25 * mean)


waits = st.builds(
    Wait,
    chance=st.floats(0, 1),
    mean_ms=st.floats(0, 500),
    gate_chance=st.floats(0, 1),
    gate_ms=st.floats(0, 300),
)


@given(waits, st.floats(0, 2000))
def test_waits_are_laws_of_chance(wait, limit_ms):
    for beyond in (wait.line_beyond, wait.gate_beyond, wait.both_beyond):
        assert 0 <= beyond(limit_ms) <= 1 + 1e-9
        assert beyond(limit_ms) >= beyond(limit_ms + 50) - 1e-9
        assert beyond(-1) == 1
    assert wait.both_beyond(limit_ms) >= max(wait.line_beyond(limit_ms), wait.gate_beyond(limit_ms)) - 1e-6


def test_line_and_gate_together_are_their_sum():
    wait = Wait(chance=1.0, mean_ms=80.0, gate_chance=1.0, gate_ms=120.0)
    chance = random.Random(1)
    sums = [chance.expovariate(1 / 80) + chance.uniform(0, 120) for _ in range(40_000)]
    for limit_ms in (30, 100, 250, 500):
        assert wait.both_beyond(limit_ms) == pytest.approx(
            sum(s > limit_ms for s in sums) / len(sums), abs=0.01
        )


first_tokens = st.builds(
    FirstToken,
    wait=waits,
    own=st.floats(1, 100).map(lambda ms: (Own(0.6, ms, ms + 5), Own(0.4, 3 * ms, 3 * ms))),
)


@given(first_tokens, st.sampled_from([0.5, 0.1, 0.01]))
def test_the_quantile_is_where_the_share_is_missed(first, miss):
    limit_ms = first.quantile(miss)
    assert first.beyond(limit_ms * 1.001 + 1e-3) <= miss + 1e-9
    assert first.beyond(limit_ms * 0.999 - 1e-3) >= miss - 1e-9


@given(first_tokens)
def test_nothing_takes_less_than_computing_the_prompt(first):
    fastest = min(own.alone_ms for own in first.own)
    assert first.beyond(fastest * 0.999) == pytest.approx(1)
    assert first.mean() >= fastest * (1 - 1e-9)


def test_a_missed_share_is_never_none():
    assert miss_share(95) == pytest.approx(0.05)
    assert miss_share(100) == 1e-4
    assert normal_beyond(10 + standard_score(0.05) * 2, 10, 2) == pytest.approx(0.05)
    assert (normal_beyond(5, 4, 0), normal_beyond(3, 4, 0)) == (0.0, 1.0)


def test_a_crowd_served_at_once_is_a_poisson_number():
    """An infinite-server queue: each sequence more ends at its own rate; mean and variance are equal."""
    assert crowd(40.0, 0.4, 0.01).variance == pytest.approx(40.0)
    assert crowd(40.0, 0.4, 0.01, arrival_scv=3.0).variance == pytest.approx(80.0)


def exact_crowd(rate, drain, most):
    """Mean and deviation of the birth-death process, by its product form."""
    weight, weights = 1.0, [1.0]
    for number in range(1, most):
        weight *= rate / drain(number)
        weights.append(weight)
    total = sum(weights)
    mean = sum(n * w for n, w in enumerate(weights)) / total
    return mean, math.sqrt(sum((n - mean) ** 2 * w for n, w in enumerate(weights)) / total)


@pytest.mark.parametrize("mean", [6.0, 25.0, 60.0])
def test_a_crowd_is_as_its_product_form_says(mean):
    """Processor sharing in steps that grow with the batch: 16 ms and 0.1 ms a sequence, 150 steps each."""

    def drain(number):
        return number / (150 * (16 + 0.1 * number))

    rate = drain(mean)
    slope = (drain(mean + 0.5) - drain(mean)) / 0.5
    exact_mean, exact_sd = exact_crowd(rate, drain, 400)
    people = crowd(mean, rate, slope)
    assert people.mean == pytest.approx(exact_mean, rel=0.03)
    assert math.sqrt(people.variance) == pytest.approx(exact_sd, rel=0.05)
