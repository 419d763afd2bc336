"""How many sequences fit into a time between tokens, and what one weighs where fewer fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.perf.decode_batch import (
    HEAVIEST,
    ROOM_SHARE,
    STEP_SHARE,
    most_sequences,
    weights_of,
)
from tokenmill.decide.perf.step_time import LinearStepTime


def device(fixed_ms=10.0, context_ms=1e-4):
    return LinearStepTime(fixed_ms=fixed_ms, decode_sequence_ms=0.0, decode_context_ms=context_ms)


@given(st.floats(1, 40), st.floats(1e-5, 1e-3), st.floats(5, 200), st.floats(100, 10_000))
def test_so_many_fit_and_one_more_does_not(fixed_ms, context_ms, itl_ms, context):
    times = device(fixed_ms, context_ms)
    most = most_sequences(times, itl_ms=itl_ms, context_tokens=context)
    limit_ms = STEP_SHARE * itl_ms
    if most < 1:
        assert times.decode_ms(1, context) > limit_ms
    else:
        assert times.decode_ms(most, most * context) <= limit_ms
        assert most == 1024 or times.decode_ms(most + 1, (most + 1) * context) > limit_ms


def test_memory_and_the_batch_limit_bound_it():
    quick = device(1.0)
    room = most_sequences(quick, itl_ms=1000, context_tokens=1000, room_tokens=50_000)
    assert room == pytest.approx(50 * ROOM_SHARE)
    assert most_sequences(quick, itl_ms=1000, context_tokens=1000, limit=7) == 7


def test_who_cannot_keep_the_time_alone_still_has_some_share():
    assert 0 < most_sequences(device(100.0), itl_ms=20, context_tokens=1000) < 1


def test_weights_are_against_the_best():
    assert weights_of([50.0, 25.0, 50.0]) == [1.0, 2.0, 1.0]
    assert weights_of([1000.0, 1e-6]) == [1.0, HEAVIEST]
    assert weights_of([]) == []
