from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    CacheTier,
    KvEvent,
    KvEvents,
)
from tokenmill.serve.worker.kv_journal import (
    FRAME_HASHES,
    MAX_WAITING_EVENTS,
    MAX_WAITING_HASHES,
    KvJournal,
    merge_events,
)

hashes = st.integers(0, 30).map(BlockHash)
tiers = st.sampled_from(CacheTier)
chains = st.lists(hashes, min_size=1, max_size=6, unique=True)
events = st.one_of(
    st.builds(lambda h, t: BlocksStored(h, BlockHash(h[0] + 100) if h[0] % 2 else None, t), chains, tiers),
    st.builds(BlocksRemoved, chains, tiers),
    st.builds(CacheCleared),
)


def cache_after(told: Iterable[KvEvent]) -> dict[CacheTier, dict[int, int | None]]:
    """What a reader believes: hash -> parent, by tier."""
    cache: dict[CacheTier, dict[int, int | None]] = {tier: {} for tier in CacheTier}
    for event in told:
        if isinstance(event, CacheCleared):
            cache = {tier: {} for tier in CacheTier}
        elif isinstance(event, BlocksStored):
            parent = event.parent
            for block in event.hashes:
                cache[event.tier][block] = parent
                parent = block
        else:
            for block in event.hashes:
                cache[event.tier].pop(block, None)
    return cache


@given(st.lists(events, max_size=30))
def test_a_snapshot_says_what_all_events_said(told: list[KvEvent]) -> None:
    journal = KvJournal()
    journal.apply(told)
    snapshot = [event for part in journal.snapshot() for event in part]
    assert isinstance(snapshot[0], CacheCleared)
    believed = cache_after(told)
    assert {t: set(c) for t, c in cache_after(snapshot).items()} == {t: set(c) for t, c in believed.items()}
    assert journal.blocks == sum(map(len, believed.values()))


def test_a_snapshot_keeps_parents_and_tells_them_first() -> None:
    told = [BlocksStored([BlockHash(b) for b in (1, 2, 3)]), BlocksStored([BlockHash(4)], BlockHash(2))]
    told.append(BlocksStored([BlockHash(9)], BlockHash(8), CacheTier.HOST))
    journal = KvJournal()
    journal.apply(told)
    (snapshot,) = journal.snapshot()
    assert cache_after(snapshot) == cache_after(told)
    assert len(snapshot) == 4  # cleared, and one for each leaf
    known: set[int] = set()
    for event in snapshot:
        if isinstance(event, BlocksStored) and event.tier is CacheTier.DEVICE:
            assert event.parent is None or event.parent in known
            known.update(event.hashes)


def test_a_big_snapshot_is_cut_and_its_parts_continue_each_other() -> None:
    told = [
        BlocksStored([BlockHash(b) for b in range(FRAME_HASHES * 2 + 5)]),
        BlocksStored([BlockHash(10**9)]),
    ]
    journal = KvJournal()
    journal.apply(told)
    parts = list(journal.snapshot())
    assert len(parts) == 3
    sizes = [sum(len(e.hashes) for e in part if isinstance(e, BlocksStored)) for part in parts]
    assert max(sizes) <= FRAME_HASHES
    assert cache_after(event for part in parts for event in part) == cache_after(told)


def stored(first: int, count: int = 1, blocks: int = 1) -> KvEvents:
    return KvEvents(
        first,
        [BlocksStored([BlockHash(first * 1000 + n) for n in range(blocks)]) for _ in range(count)],
    )


def test_what_waits_is_joined_in_order() -> None:
    merged = merge_events(stored(0, 2), stored(2))
    assert merged == KvEvents(0, [*stored(0, 2).events, *stored(2).events])
    assert merge_events(stored(0, 2), stored(3)) is None


def test_too_much_waiting_becomes_a_gap_that_the_reader_sees() -> None:
    for merged in (
        merge_events(stored(0, MAX_WAITING_EVENTS), stored(MAX_WAITING_EVENTS)),
        merge_events(stored(0, 1, MAX_WAITING_HASHES), stored(1)),
    ):
        assert merged is not None
        assert merged.events == []
        assert merged.first > 0
        later = merge_events(merged, stored(merged.first))
        assert later is not None
        assert later.first == merged.first
