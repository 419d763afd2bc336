"""Which cached block goes first."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.block_pool import BlockPool
from tokenmill.decide.batching.cached_run import CachedRun
from tokenmill.decide.batching.eviction import FOUND_AGE_DIVISOR, EvictionOrder


def let_go(order: EvictionOrder, *blocks: int, found: bool = False) -> CachedRun:
    run = CachedRun([100 + block for block in blocks], [*blocks], None)
    run.found = found
    order.add(run)
    return run


def popped(order: EvictionOrder, count: int) -> list[int]:
    gone: list[int] = []
    for run, cut in order.pop_many(count):
        gone += run.cut(cut)[1][::-1]
    return gone


def test_the_oldest_goes_first() -> None:
    order = EvictionOrder()
    for block in (2, 0, 3):
        let_go(order, block)
    assert len(order) == 3
    assert popped(order, 3) == [2, 0, 3]


def test_a_run_goes_from_its_end() -> None:
    order = EvictionOrder()
    let_go(order, 4, 5, 6)
    let_go(order, 7)
    assert popped(order, 2) == [6, 5]
    assert [run.blocks for run in order] == [[4], [7]]
    assert popped(order, 2) == [4, 7]
    assert (len(order), list(order)) == (0, [])


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_block_found_again_outlives_newer_ones(at_once: int) -> None:
    order = EvictionOrder()
    let_go(order, 9, found=True)
    let_go(order, *range(6, -1, -1))
    # Block 9 has seen seven others go, so it counts as three and a half old: older than block 3, which has
    # seen three.
    gone: list[int] = []
    while len(order):
        gone += popped(order, at_once)
    assert gone == [0, 1, 2, 9, 3, 4, 5, 6]


def test_runs_of_both_kinds_go_as_their_blocks_would() -> None:
    order = EvictionOrder()
    let_go(order, 5, 4, 3, 2, 1, 0, found=True)
    let_go(order, 15, 14, 13, 12, 11, 10)
    # After twelve blocks: 0 counts as old as 10 does, 1 is half a block younger and so on.
    expected = sorted(
        [(age / 2, 1, block) for age, block in zip(range(11, 5, -1), range(6), strict=True)]
        + [(float(age), 0, block) for age, block in zip(range(5, -1, -1), range(10, 16), strict=True)],
        key=lambda entry: (-entry[0], entry[1]),
    )
    assert popped(order, 12) == [block for _, _, block in expected]


def test_a_block_found_again_goes_when_it_is_much_older() -> None:
    order = EvictionOrder()
    let_go(order, 0, found=True)
    for block in range(1, 90):
        let_go(order, block)
    oldest_new = 0
    while (gone := popped(order, 1)) != [0]:
        (oldest_new,) = gone
    assert 0 < oldest_new < 90 / FOUND_AGE_DIVISOR + 2


def test_what_is_taken_is_not_in_the_order() -> None:
    order = EvictionOrder()
    run, other = let_go(order, 1, 2, 3), let_go(order, 4, found=True)
    head = run.split(2)
    order.remove(head)
    assert (len(order), list(order)) == (2, [run, other])
    order.remove(run)
    order.remove(other)
    assert (len(order), list(order)) == (0, [])
    with pytest.raises(KeyError):
        popped(order, 1)


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
