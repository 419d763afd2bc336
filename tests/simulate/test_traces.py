"""What can be done with a trace, and what its prompts tell of conversations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.simulate.traces import Trace, TracedRequest, sessions_of

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50).map(sorted)


def test_a_trace_can_be_denser_and_cut() -> None:
    trace = Trace([TracedRequest(at, 10, 2) for at in (0.0, 10.0, 20.0, 30.0)])
    assert [r.at_s for r in trace.faster(4.0).requests] == [0.0, 2.5, 5.0, 7.5]
    assert [r.at_s for r in trace.between(10.0, 30.0).requests] == [0.0, 10.0]
    assert [r.at_s for r in trace.first(2).requests] == [0.0, 10.0]
    assert (trace.prompt_tokens, trace.output_tokens, trace.length_s) == (40, 8, 30.0)


def test_an_empty_trace_has_no_length() -> None:
    assert Trace([]).length_s == 0.0


@given(TIMES, st.floats(0.1, 100))
def test_denser_keeps_order_and_number(times: list[float], speedup: float) -> None:
    trace = Trace([TracedRequest(at, 1, 1) for at in times], 16).faster(speedup)
    found = [r.at_s for r in trace.requests]
    assert found == sorted(found)
    assert len(found) == len(times)
    assert trace.prefix_block_tokens == 16


@given(TIMES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_two_cuts_are_the_whole(times: list[float], first: float, second: float) -> None:
    low, high = sorted((first, second))
    trace = Trace([TracedRequest(at, 1, 1) for at in times])
    parts = [trace.between(0, low), trace.between(low, high), trace.between(high, 1e7)]
    assert sum(len(part.requests) for part in parts) == len(times)
    assert all(r.at_s >= 0 for part in parts for r in part.requests)


def test_a_session_is_the_first_block_that_is_not_a_common_head() -> None:
    heads = [TracedRequest(0, 24, 1, (0, 10 + number, 500 + number)) for number in range(200)]
    again = TracedRequest(1, 32, 1, (0, 12, 502, 900))
    sessions = sessions_of(Trace([*heads, again, TracedRequest(2, 8, 1)], prefix_block_tokens=8))
    assert sessions[2] == sessions[200] != ""
    assert len(set(sessions[:200])) == 200
    assert sessions[201] == ""
