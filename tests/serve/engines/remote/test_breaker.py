"""The circuit breaker: when it opens, whom it lets try, how long it waits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.protocol.metrics import Circuit
from tokenmill.serve.engines.remote.breaker import CircuitBreaker, Outcome

GOOD, BAD, NEITHER = Outcome.GOOD, Outcome.BAD, Outcome.NEITHER


def tell(breaker: CircuitBreaker, *outcomes: Outcome, now: float = 0.0) -> None:
    for outcome in outcomes:
        ticket = breaker.admit(now)
        assert ticket is not None
        breaker.tell(ticket, outcome, now)


def opened(**settings: float) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=3, open_s=2.0, longest_s=5.0)
    tell(breaker, BAD, BAD, BAD)
    assert breaker.state is Circuit.OPEN
    return breaker


def test_it_opens_after_failures_in_a_row_alone():
    breaker = CircuitBreaker(failures=3)
    tell(breaker, BAD, BAD, GOOD, BAD, BAD, NEITHER)
    assert breaker.state is Circuit.CLOSED
    tell(breaker, BAD)
    assert breaker.state is Circuit.OPEN


def test_while_open_nobody_is_let_through_and_then_one():
    breaker = opened()
    assert breaker.admit(1.9) is None
    assert breaker.left_s(1.5) == 0.5
    probe = breaker.admit(2.0)
    assert probe is not None
    assert breaker.state is Circuit.HALF_OPEN
    assert breaker.admit(2.0) is None
    breaker.tell(probe, GOOD, 2.1)
    assert breaker.state is Circuit.CLOSED
    assert breaker.admit(2.1) is not None


def test_a_bad_probe_opens_it_for_twice_as_long_up_to_a_limit():
    breaker = opened()
    now, waits = 0.0, []
    for _ in range(4):
        waits.append(breaker.left_s(now))
        now += waits[-1]
        probe = breaker.admit(now)
        assert probe is not None
        breaker.tell(probe, BAD, now)
    assert waits == [2.0, 4.0, 5.0, 5.0]
    now += 5.0
    probe = breaker.admit(now)
    breaker.tell(probe, GOOD, now)
    tell(breaker, BAD, BAD, BAD, now=now)
    assert breaker.left_s(now) == 2.0


def test_a_probe_that_says_nothing_lets_another_one_try():
    breaker = opened()
    first = breaker.admit(2.0)
    breaker.tell(first, NEITHER, 2.0)
    assert breaker.state is Circuit.HALF_OPEN
    assert breaker.admit(2.0) is not None


def test_what_was_sent_before_it_opened_says_nothing_of_now():
    breaker = CircuitBreaker(failures=2, open_s=1.0)
    late = breaker.admit(0.0)
    tell(breaker, BAD, BAD)
    breaker.tell(late, GOOD, 0.5)
    assert breaker.state is Circuit.OPEN
    breaker.look(1.0)
    breaker.tell(late, BAD, 1.0)
    assert breaker.state is Circuit.HALF_OPEN


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.floats(0.0, 3.0)), max_size=60))
@settings(deadline=None)
def test_it_never_shuts_for_good_and_lets_one_at_most_probe(steps):
    breaker = CircuitBreaker(failures=2, open_s=1.0, longest_s=4.0)
    now = 0.0
    for outcome, wait_s in steps:
        now += wait_s
        ticket = breaker.admit(now)
        if breaker.state is Circuit.HALF_OPEN:
            assert breaker.admit(now) is None
        if ticket is not None:
            breaker.tell(ticket, outcome, now)
        assert breaker.left_s(now) <= 4.0 + 1e-9
    assert breaker.admit(now + 4.0 + 1e-9) is not None
