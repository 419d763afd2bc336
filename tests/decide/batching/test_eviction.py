"""Which cached block goes first."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.block_pool import BlockPool
from tokenmill.decide.batching.eviction import FOUND_AGE_DIVISOR, EvictionOrder


def drained(order: EvictionOrder) -> list[int]:
    return [order.pop() for _ in range(len(order))]


def test_the_oldest_goes_first() -> None:
    order = EvictionOrder()
    for block in (2, 0, 3):
        order.add(block)
    assert len(order) == 3
    assert drained(order) == [2, 0, 3]


def test_a_block_found_again_outlives_newer_ones() -> None:
    order = EvictionOrder()
    order.add(0)
    order.found(0)
    for block in range(7):
        order.add(block)
    # Block 0 has seen six others go, so it counts as three old: as old as block 3.
    assert drained(order) == [1, 2, 3, 0, 4, 5, 6]


def test_a_block_found_again_goes_when_it_is_much_older() -> None:
    order = EvictionOrder()
    order.found(0)
    order.add(0)
    for block in range(1, 90):
        order.add(block)
    oldest_new = 0
    while (gone := order.pop()) != 0:
        oldest_new = gone
    assert 0 < oldest_new < 90 / FOUND_AGE_DIVISOR + 2


def test_what_is_held_is_not_in_the_order() -> None:
    order = EvictionOrder()
    order.add(1)
    order.found(1)
    assert len(order) == 0
    order.found(1)
    order.add(1)
    assert list(order) == [1]
    order.found(1)
    assert list(order) == []
    with pytest.raises(KeyError):
        order.pop()


def test_a_block_that_was_given_up_starts_anew() -> None:
    order = EvictionOrder()
    order.found(0)
    order.add(0)
    assert order.pop() == 0
    for block in (0, 1):
        order.add(block)
    order.found(1)
    order.add(1)
    assert drained(order) == [0, 1]


def test_a_conversation_in_progress_survives_prompts_that_never_come_back() -> None:
    """Between its turns pass more new blocks than the pool has: plain recency would lose it each time."""
    pool = BlockPool(100, 16)
    names, fresh = list(range(1, 11)), iter(range(1000, 100_000))

    def serve(wanted: list[int]) -> int:
        found = pool.match(wanted)
        pool.hold(found)
        blocks = found + pool.allocate(len(wanted) - len(found))
        for at in range(len(found), len(wanted)):
            pool.commit(wanted[at], blocks[at], wanted[at - 1] if at else None)
        pool.free(blocks)
        return len(found)

    serve(names)
    assert serve(names) == 10
    for _ in range(5):
        for _ in range(12):
            serve([next(fresh) for _ in range(10)])
        assert serve(names) == 10
    pool.validate([])
