"""What several ranks have cached, apart and together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvent
from tokenmill.serve.engines.kv_events.rank_caches import RankCaches
from tokenmill.serve.worker.kv_journal import KvJournal

RANKS = 3


def blocks(*numbers: int) -> list[BlockHash]:
    return [BlockHash(number) for number in numbers]


def test_one_rank_is_passed_on() -> None:
    events: list[KvEvent] = [BlocksStored(blocks(1)), BlocksRemoved(blocks(9)), CacheCleared()]
    assert RankCaches(1).apply(0, events) is events


def test_one_rank_is_followed() -> None:
    caches = RankCaches(1)
    caches.apply(0, [BlocksStored(blocks(1, 2, 3)), BlocksRemoved(blocks(3))])
    assert caches.cached_blocks(0, [1, 2, 3, 4]) == 2
    caches.apply(0, [CacheCleared()])
    assert caches.cached_blocks(0, [1, 2, 3, 4]) == 0


def test_a_block_is_gone_with_the_last_rank_that_had_it() -> None:
    caches = RankCaches(2)
    caches.apply(0, [BlocksStored(blocks(1, 2))])
    caches.apply(1, [BlocksStored(blocks(1))])
    assert caches.apply(0, [BlocksRemoved(blocks(1, 2))]) == [BlocksRemoved(blocks(2))]
    assert caches.apply(1, [BlocksRemoved(blocks(1))]) == [BlocksRemoved(blocks(1))]


def test_a_rank_that_is_cleared_leaves_what_others_have() -> None:
    caches = RankCaches(2)
    caches.apply(0, [BlocksStored(blocks(1, 2))])
    caches.apply(1, [BlocksStored(blocks(2, 3))])
    assert caches.apply(0, [CacheCleared()]) == [BlocksRemoved(blocks(1))]
    assert caches.apply(1, [CacheCleared()]) == [CacheCleared()]


def test_how_much_of_a_prompt_a_rank_has() -> None:
    caches = RankCaches(2)
    caches.apply(0, [BlocksStored(blocks(1)), BlocksStored(blocks(2), None, CacheTier.HOST)])
    assert [caches.cached_blocks(rank, [1, 2, 3]) for rank in (0, 1)] == [2, 0]
    assert caches.cached_blocks(0, [3, 1]) == 0
    assert caches.cached_blocks(0, [1]) == 1


numbers = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True)
tiers = st.sampled_from([CacheTier.DEVICE, CacheTier.HOST])
events = st.one_of(
    st.builds(lambda names, tier: BlocksStored(blocks(*names), None, tier), numbers, tiers),
    st.builds(lambda names, tier: BlocksRemoved(blocks(*names), tier), numbers, tiers),
    st.just(CacheCleared()),
)


@given(st.lists(st.tuples(st.integers(0, RANKS - 1), events)))
def test_together_they_have_what_any_has(told: list[tuple[int, KvEvent]]) -> None:
    caches, together = RankCaches(RANKS), KvJournal()
    alone = [KvJournal() for _ in range(RANKS)]
    for rank, event in told:
        together.apply(caches.apply(rank, [event]))
        alone[rank].apply([event])
        held = {(tier, name) for each in alone for tier, names in each._cached.items() for name in names}
        assert {(tier, name) for tier, names in together._cached.items() for name in names} == held
