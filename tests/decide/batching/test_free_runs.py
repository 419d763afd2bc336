"""Free blocks as runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.batching.free_runs import FreeRuns


def test_blocks_come_as_one_run() -> None:
    free = FreeRuns(10)
    assert free.take(4) == [0, 1, 2, 3]
    assert free.take(3) == [4, 5, 6]
    assert len(free) == 3


def test_freed_neighbours_join_again() -> None:
    free = FreeRuns(8)
    for block in (blocks := free.take(8))[::2] + blocks[1::2]:
        free.add(block)
        free.validate()
    assert free.runs() == [(0, 8)]


def test_a_run_that_fits_is_taken_before_pieces() -> None:
    free = FreeRuns(20)
    free.take(20)
    for block in [0, 2, 4, 10, 11, 12, 13]:
        free.add(block)
    assert free.take(4) == [10, 11, 12, 13]


def test_small_runs_are_used_up_before_long_ones() -> None:
    free = FreeRuns(20)
    free.take(20)
    for block in [0, 10, 11, 12, 13]:
        free.add(block)
    assert free.take(1) == [0]


def test_what_follows_is_preferred() -> None:
    free = FreeRuns(20)
    free.take(20)
    for block in [0, 6, 7, 8]:
        free.add(block)
    assert free.take(1, after=5) == [6]
    assert free.take(1, after=19) == [0]


def test_pieces_are_used_when_no_run_fits() -> None:
    free = FreeRuns(9)
    free.take(9)
    for block in [0, 1, 4, 7, 8]:
        free.add(block)
    assert sorted(free.take(5)) == [0, 1, 4, 7, 8]
    assert len(free) == 0


def test_more_than_there_is() -> None:
    free = FreeRuns(3)
    with pytest.raises(ValueError, match="4 blocks asked for, 3 free"):
        free.take(4)
    assert free.take(0) == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 23), st.randoms()), max_size=25))
def test_any_order_of_taking_and_adding(moves: list[tuple[int, int | None, object]]) -> None:
    free, out = FreeRuns(24), set()
    for count, after, random in moves:
        if count <= len(free):
            taken = free.take(count, after)
            assert len(set(taken)) == count
            assert not out & set(taken)
            out |= set(taken)
        for block in random.sample(sorted(out), len(out) // 2):
            free.add(block)
            out.remove(block)
        free.validate()
        assert len(free) == 24 - len(out)
