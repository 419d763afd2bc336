"""Events for routers."""

from __future__ import annotations

from tokenmill.decide.batching.kv_event_log import KvEventLog
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared


def never() -> dict[int, int | None]:
    raise AssertionError("no snapshot was due")


def test_a_chain_is_one_event() -> None:
    log = KvEventLog(limit=10)
    for block_hash, parent in [(1, None), (2, 1), (3, 2), (7, 1)]:
        log.stored(block_hash, parent)
    assert log.drain(never) == [BlocksStored([1, 2, 3], None), BlocksStored([7], 1)]
    assert log.drain(never) == []


def test_order_is_kept() -> None:
    log = KvEventLog(limit=10)
    log.stored(1, None)
    log.removed(1)
    log.removed(5)
    log.stored(1, None)
    assert log.drain(never) == [BlocksStored([1]), BlocksRemoved([1, 5]), BlocksStored([1])]


def test_an_undrained_log_becomes_a_snapshot() -> None:
    log = KvEventLog(limit=3)
    for block_hash in range(10):
        log.stored(block_hash, None)
    cached = {3: 2, 2: 1, 1: None, 9: 8, 4: 2}
    events = log.drain(lambda: cached)
    assert events == [
        CacheCleared(),
        BlocksStored([1, 2, 3], None),
        BlocksStored([9], 8),
        BlocksStored([4], 2),
    ]
    log.removed(3)
    assert log.drain(never) == [BlocksRemoved([3])]
