from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tokenmill.decide.router.index import Owner, PrefixIndex
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvents


def holders(index: PrefixIndex, name: int, tier: int) -> int:
    return index.tiers[tier][name & index.shard_mask].get(name, 0)


def sweep_all(index: PrefixIndex) -> None:
    for _ in range(2 * (index.shard_mask + 1) + 2):
        index.sweep()


NAMES = st.lists(st.integers(0, 40), max_size=8, unique=True)
TIERS = st.sampled_from(CacheTier)


class IndexMachine(RuleBasedStateMachine):
    """Against a set of names for each worker and tier."""

    limit = 1000

    @initialize()
    def begin(self) -> None:
        self.index = PrefixIndex(self.limit, shards=4)
        self.owners: list[Owner] = []
        self.model: dict[int, dict[int, set[int]]] = {}

    @rule()
    def join(self) -> None:
        if len(self.owners) < 6:
            owner = self.index.join()
            assert owner.slot not in {other.slot for other in self.owners}
            self.owners.append(owner)
            self.model[id(owner)] = defaultdict(set)

    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        if self.owners:
            owner = self.owners.pop(which % len(self.owners))
            del self.model[id(owner)]
            self.index.leave(owner)

    @rule(which=st.integers(0, 5), names=NAMES, tier=TIERS)
    def store(self, which: int, names: list[int], tier: CacheTier) -> None:
        if self.owners:
            owner = self.owners[which % len(self.owners)]
            self.index.apply(owner, BlocksStored(names, None, tier))
            self.model[id(owner)][tier] |= set(names)

    @rule(which=st.integers(0, 5), names=NAMES, tier=TIERS)
    def remove(self, which: int, names: list[int], tier: CacheTier) -> None:
        if self.owners:
            owner = self.owners[which % len(self.owners)]
            self.index.apply(owner, BlocksRemoved(names, tier))
            self.model[id(owner)][tier] -= set(names)

    @rule(times=st.integers(1, 12))
    def sweep(self, times: int) -> None:
        for _ in range(times):
            self.index.sweep()

    @rule(names=NAMES)
    def touch(self, names: list[int]) -> None:
        self.index.touch(names)

    def agrees(self, owner: Owner, name: int, tier: CacheTier) -> bool:
        told = name in self.model[id(owner)][tier]
        return bool(holders(self.index, name, tier) & owner.bit) is told

    @invariant()
    def every_live_bit_is_right(self) -> None:
        for owner in getattr(self, "owners", ()):
            assert all(self.agrees(owner, name, tier) for name in range(41) for tier in CacheTier)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "index"):
            return
        for tier, shards in enumerate(self.index.tiers):
            assert self.index.tier_blocks[tier] == sum(map(len, shards))
            assert all(mask for shard in shards for mask in shard.values())
        for owner in self.owners:
            held = sum(
                bool(holders(self.index, name, tier) & owner.bit) for name in range(41) for tier in CacheTier
            )
            assert owner.blocks == held
        assert self.index.blocks <= self.limit

    def teardown(self) -> None:
        if hasattr(self, "index"):
            for owner in self.owners:
                self.index.leave(owner)
            sweep_all(self.index)
            assert self.index.blocks == 0
            assert [self.index.join().slot for _ in self.owners] == list(range(len(self.owners)))


class SmallIndexMachine(IndexMachine):
    """With too little room: what is held is true, though not all that is true is held."""

    limit = 12

    def agrees(self, owner: Owner, name: int, tier: CacheTier) -> bool:
        held = holders(self.index, name, tier) & owner.bit
        return not held or name in self.model[id(owner)][tier]


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSmallIndex = SmallIndexMachine.TestCase
TestSmallIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_full_index_forgets_what_was_stored_longest_ago():
    index = PrefixIndex(64, shards=1)
    owner = index.join()
    for name in range(200):
        index.apply(owner, BlocksStored([name]))
    assert index.blocks <= 64
    assert owner.blocks == index.blocks
    assert index.forgotten_total == 200 - index.blocks
    kept = set(index.tiers[0][0])
    assert kept == set(range(200 - len(kept), 200))
    assert len(kept) >= 56  # an eighth at a time


def test_what_was_hit_is_passed_over_once():
    index = PrefixIndex(64, shards=1)
    owner = index.join()
    index.apply(owner, BlocksStored(list(range(60))))
    index.touch([0, 1])
    index.apply(owner, BlocksStored(list(range(100, 110))))
    assert {0, 1} <= set(index.tiers[0][0])
    assert 2 not in index.tiers[0][0]
    index.apply(owner, BlocksStored(list(range(200, 300))))
    assert not {0, 1} & set(index.tiers[0][0])


def test_removing_what_was_forgotten_is_no_error():
    index = PrefixIndex(8, shards=1)
    owner, other = index.join(), index.join()
    index.apply(owner, BlocksStored(list(range(20))))
    index.apply(other, BlocksRemoved(list(range(20))))
    index.apply(owner, BlocksRemoved(list(range(20))))
    assert (index.blocks, owner.blocks, other.blocks) == (0, 0, 0)


def test_neighbours_with_equal_owners_share_one_mask():
    index = PrefixIndex(1000)
    one, two = index.join(), index.join()
    index.apply(one, BlocksStored(list(range(100))))
    index.apply(two, BlocksStored(list(range(100))))
    assert len({id(mask) for shard in index.tiers[0] for mask in shard.values()}) == 1


def test_numbers_of_events():
    index = PrefixIndex(10)
    owner = index.join()
    assert not index.is_next(owner, KvEvents(5, [CacheCleared()]))  # joined in the middle
    assert index.is_next(owner, KvEvents(0, [CacheCleared(), CacheCleared()]))
    assert index.is_next(owner, KvEvents(2, [CacheCleared()]))
    assert not index.is_next(owner, KvEvents(4, [CacheCleared()]))  # 3 is missing
    assert not index.is_next(owner, KvEvents(5, [CacheCleared()]))  # and stays so until
    assert index.is_next(owner, KvEvents(0, []))  # a new subscription
    assert index.events_total == 3


def test_a_slot_is_not_reused_while_its_bits_stand():
    index = PrefixIndex(1000, shards=8)
    owner = index.join()
    index.apply(owner, BlocksStored(list(range(50))))
    index.leave(owner)
    assert index.join().slot == 1
    for _ in range(8):
        index.sweep()
    assert index.blocks == 0
    index.sweep()
    assert index.join().slot == 0


def test_a_slot_is_not_reused_while_it_is_predicted():
    index = PrefixIndex(1000, shards=1)
    owner = index.join()
    owner.claims = 1
    index.leave(owner)
    sweep_all(index)
    assert index.join().slot == 1
    owner.claims = 0
    sweep_all(index)
    assert index.join().slot == 0
