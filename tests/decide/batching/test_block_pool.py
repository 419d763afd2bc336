"""Holding, caching and evicting blocks."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmill.decide.batching.block_pool import BlockPool
from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored


def commit_all(pool: BlockPool, hashes: list[int], blocks: list[int]) -> None:
    for index, (block_hash, block) in enumerate(zip(hashes, blocks, strict=True)):
        pool.commit(block_hash, block, hashes[index - 1] if index else None)


def test_an_allocation_is_one_run() -> None:
    pool = BlockPool(10, 16)
    assert pool.allocate(4) == [0, 1, 2, 3]
    assert (pool.free_blocks, pool.used_blocks) == (6, 4)
    pool.validate([[0, 1, 2, 3]])


def test_freed_cached_blocks_are_found_and_held_again() -> None:
    pool = BlockPool(10, 16)
    blocks = pool.allocate(3)
    commit_all(pool, [11, 12, 13], blocks)
    pool.free(blocks)
    assert pool.free_blocks == 10
    assert pool.match([11, 12, 99, 13]) == blocks[:2]
    assert pool.evictable_among(blocks) == 3
    pool.hold(blocks[:2])
    pool.hold(blocks[:1])
    pool.validate([blocks[:2], blocks[:1]])
    assert pool.free_blocks == 8
    assert pool.evictable_among(blocks) == 1


def test_the_oldest_go_first_and_tails_before_heads() -> None:
    pool = BlockPool(4, 16)
    first, second = pool.allocate(2), pool.allocate(2)
    commit_all(pool, [1, 2], first)
    commit_all(pool, [3, 4], second)
    pool.free(second)
    pool.free(first)
    pool.drain_events()
    gone = []
    for _ in range(4):
        pool.allocate(1)
        gone += [h for event in pool.drain_events() for h in event.hashes]
    assert gone == [4, 3, 2, 1]


def test_a_used_block_becomes_young_again() -> None:
    pool = BlockPool(2, 16)
    for name in (1, 2):
        pool.commit(name, pool.allocate(1)[0], None)
    old, young = pool.match([1])[0], pool.match([2])[0]
    pool.free([old])
    pool.free([young])
    pool.hold([old])
    pool.free([old])
    pool.allocate(1)
    assert pool.match([1]) == [old]
    assert pool.match([2]) == []


def test_uncached_blocks_are_used_before_cached_ones() -> None:
    pool = BlockPool(3, 16)
    blocks = pool.allocate(3)
    pool.commit(7, blocks[1], None)
    pool.free(blocks)
    assert blocks[1] not in pool.allocate(2)
    assert pool.match([7]) == [blocks[1]]


def test_evicted_blocks_join_into_runs() -> None:
    pool = BlockPool(8, 16)
    blocks = pool.allocate(8)
    commit_all(pool, list(range(8)), blocks)
    pool.free(blocks)
    assert pool.allocate(4) == [4, 5, 6, 7]


def test_the_first_to_name_a_hash_keeps_it() -> None:
    pool = BlockPool(4, 16)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.commit(5, first[0], None)
    pool.commit(5, second[0], None)
    assert pool.match([5]) == first
    pool.free(second)
    pool.free(first)
    pool.validate([])
    assert pool.match([5]) == first
    assert pool.drain_events() == [BlocksStored([5])]


def test_events_tell_what_is_cached() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.allocate(2)
    commit_all(pool, [1, 2], blocks)
    pool.free(blocks)
    pool.allocate(2)
    assert pool.drain_events() == [BlocksStored([1, 2]), BlocksRemoved([2, 1])]


def test_without_prefix_cache_nothing_is_named() -> None:
    pool = BlockPool(2, 16, prefix_cache=False)
    blocks = pool.allocate(2)
    pool.commit(1, blocks[0], None)
    assert pool.match([1]) == []
    assert pool.drain_events() == []
    pool.free(blocks)
    pool.validate([])


def test_more_than_there_is_changes_nothing() -> None:
    pool = BlockPool(4, 16)
    held = pool.allocate(2)
    with pytest.raises(ValueError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    pool.validate([held])


def test_freeing_twice_is_a_bug() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed more often"):
        pool.free(blocks)


def test_validate_sees_a_leak() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="holders"):
        pool.validate([])


def test_an_undrained_pool_tells_its_content_at_last() -> None:
    pool = BlockPool(2, 1)
    hashes = block_hashes(list(range(3000)), 1)
    for index, block_hash in enumerate(hashes):
        block = pool.allocate(1)
        pool.commit(block_hash, block[0], hashes[index - 1] if index else None)
        pool.free(block)
    told: set[int] = set()
    events = pool.drain_events()
    assert len(events) == 2
    for event in events[1:]:
        told |= set(event.hashes)
    assert told == set(hashes[-2:])


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, name and free blocks in any order; a dict says what must be found."""

    @initialize(total=st.integers(1, 12))
    def start(self, total: int) -> None:
        self.pool = BlockPool(total, 2)
        self.tables: list[list[int]] = []
        self.content: dict[int, int] = {}
        self.named = 0

    @rule(count=st.integers(1, 6), after=st.none() | st.integers(0, 11))
    def allocate(self, count: int, after: int | None) -> None:
        if count > self.pool.free_blocks:
            return
        blocks = self.pool.allocate(count, after)
        for block in blocks:
            self.content.pop(block, None)
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table:
            if block not in self.content:
                self.named += 1
                self.content[block] = self.named
                self.pool.commit(self.named, block, None)

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(sorted(self.content.values())), min_size=1, unique=True))
        found = self.pool.match(wanted)
        assert [self.content[block] for block in found] == wanted
        self.pool.hold(found)
        self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.free(self.tables.pop(at))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "pool"):
            self.pool.validate(self.tables)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
