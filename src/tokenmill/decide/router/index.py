"""Which worker has which KV block cached, as their events tell: from a block's name to a bit mask of workers.

Exists so that a router can look a prompt up at any depth without walking there (``lookup`` does). It must not
know prompts, loads or why anyone asks.

What is believed and may be wrong: engines drop the tail of a chain before its head (a tail is of no use
without its head), so a block's presence stands for the presence of all before it. Where that fails, a hit is
predicted too deep by the hole, and a request is sent to a worker that must compute more than thought. The
other way round, a block that was forgotten here for want of room makes a hit look shallower than it is.
Neither changes any token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice, repeat
from typing import Final

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheTier, KvEvents

SHARDS: Final = 256
"""Each tier's names are dealt out to so many dicts, so that growing one, or forgetting or sweeping some of
it, stalls nobody: a million names rehash in 50 ms at once, or in 256 times 0.2 ms."""

FORGET_SHARE: Final = 8
"""When the index is full, one shard loses one in so many of its names."""

TIERS: Final = tuple(CacheTier)


class Owner:
    """One worker's place in the index: its bit, and how far its events were read.

    ``next_event``: the number its next event should have; None: only a snapshot is welcome. ``blocks``: names
    that carry the bit, all tiers together. ``claims``: predictions that carry it. ``told``: it gives events.
    """

    __slots__ = ("bit", "blocks", "claims", "next_event", "slot", "told")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.blocks = 0
        self.claims = 0
        self.next_event: int | None = None
        self.told = False


class PrefixIndex:
    """``limit``: most names held, over all tiers. All event methods take a time linear in their names.

    Forgetting: when full, the names stored longest ago go first, but those that a look-up has hit since are
    passed over once (``touch``). Shards take turns.
    """

    def __init__(self, limit: int, shards: int = SHARDS) -> None:
        assert shards & (shards - 1) == 0, "a power of two"
        self.limit = limit
        self.tiers: list[list[dict[int, int]]] = [[{} for _ in range(shards)] for _ in TIERS]
        self.tier_blocks = [0 for _ in TIERS]
        self.shard_mask = shards - 1
        self.events_total = 0
        self.forgotten_total = 0
        self._owners: list[Owner | None] = []
        self._gone: list[Owner] = []  # their bits may still stand somewhere; bounded by what a sweep outlasts
        self._sweeping: list[Owner] = []
        self._sweep_at = 0
        self._forget_at = 0
        # Names hit since the last rounds of forgetting; two generations, each of at most an eighth of the
        # limit.
        self._touched: set[int] = set()
        self._touched_before: set[int] = set()

    @property
    def blocks(self) -> int:
        """Names held, over all tiers."""
        return sum(self.tier_blocks)

    # Owners --------------------------------------------------------------------------------------------

    def join(self) -> Owner:
        """Return a place for a worker, without blocks."""
        if None not in self._owners:
            self._owners.append(None)
        slot = self._owners.index(None)
        fresh = Owner(slot)
        self._owners[slot] = fresh
        return fresh

    def leave(self, owner: Owner) -> None:
        """A worker's blocks are forgotten. Its bit is given to nobody until ``sweep`` has cleared it."""
        self._gone.append(owner)

    def sweep(self) -> None:
        """Clear bits of who is gone, in one shard at most; call it now and then."""
        if not self._sweeping:
            if not self._gone:
                return
            self._release()
            self._sweeping = [owner for owner in self._gone if owner.blocks]
            self._sweep_at = 0
            if not self._sweeping:
                return
        dead = 0
        for owner in self._sweeping:
            dead |= owner.bit
        for tier, shards in enumerate(self.tiers):
            shard = shards[self._sweep_at]
            for name in [name for name, mask in shard.items() if mask & dead]:
                left = shard[name] & ~dead
                if left:
                    shard[name] = left
                else:
                    del shard[name]
                    self.tier_blocks[tier] -= 1
        self._sweep_at += 1
        if self._sweep_at > self.shard_mask:
            for owner in self._sweeping:
                owner.blocks = 0
            self._sweeping = []

    def _release(self) -> None:
        """Free the places of those who have no bit left anywhere."""
        kept = []
        for owner in self._gone:
            if owner.blocks or owner.claims:
                kept.append(owner)
            else:
                self._owners[owner.slot] = None
        self._gone = kept

    # Events --------------------------------------------------------------------------------------------

    def is_next(self, owner: Owner, batch: KvEvents) -> bool:
        """Note the batch's number; False: events were missed, and ``owner`` must start anew with a snapshot.

        A batch that starts at 0 is the first of a new subscription.
        """
        owner.told = True
        if batch.first and batch.first != owner.next_event:
            owner.next_event = None
            return False
        owner.next_event = batch.first + len(batch.events)
        self.events_total += len(batch.events)
        return True

    def apply(self, owner: Owner, event: BlocksStored | BlocksRemoved) -> None:
        """Blocks of ``owner`` came or went."""
        if isinstance(event, BlocksStored):
            self._stored(owner, event.hashes, event.tier)
        else:
            self._removed(owner, event.hashes, event.tier)

    def _stored(self, owner: Owner, names: Collection[int], tier: int) -> None:
        shards, pick, bit = self.tiers[tier], self.shard_mask, owner.bit
        fresh = had = 0
        seen = merged = 0
        known: Collection[int] = names
        if not pick and shards[0].keys().isdisjoint(names):  # one shard, nothing known: no work for each
            shards[0].update(dict.fromkeys(names, bit))
            fresh, known = len(names), ()
        for name in known:
            shard = shards[name & pick]
            mask = shard.get(name)
            if mask is None:
                shard[name] = bit
                fresh += 1
            elif mask & bit:
                had += 1
            else:
                if mask != seen:  # neighbours in a chain mostly have equal owners: they share one object
                    seen, merged = mask, mask | bit
                shard[name] = merged
        owner.blocks += len(names) - had
        self.tier_blocks[tier] += fresh
        while self.blocks > self.limit:
            self._forget()

    def _removed(self, owner: Owner, names: Collection[int], tier: int) -> None:
        shards, pick, bit = self.tiers[tier], self.shard_mask, owner.bit
        gone = cleared = 0
        seen = left = 0
        if not pick:  # one shard: no work for each of those that nobody else has
            shard = shards[0]
            masks = [*map(shard.get, names)]
            own = names
            if masks.count(bit) == len(masks):
                names = ()
            else:
                own = [name for name, mask in zip(names, masks, strict=True) if mask == bit]
                names = [name for name, mask in zip(names, masks, strict=True) if mask != bit]
            deque(map(shard.pop, own, repeat(None)), maxlen=0)
            gone = cleared = len(own)
        for name in names:
            shard = shards[name & pick]
            mask = shard.get(name)
            if mask is None or not mask & bit:
                continue  # forgotten before
            cleared += 1
            if mask == bit:
                del shard[name]
                gone += 1
            else:
                if mask != seen:
                    seen, left = mask, mask ^ bit
                shard[name] = left
        owner.blocks -= cleared
        self.tier_blocks[tier] -= gone

    def missing(self, names: Iterable[BlockHash], owner: Owner) -> list[BlockHash]:
        """Return those of ``names`` that no event says ``owner`` has in device memory."""
        shards, pick, bit = self.tiers[CacheTier.DEVICE], self.shard_mask, owner.bit
        return [name for name in names if not shards[name & pick].get(name, 0) & bit]

    # Bounded memory ------------------------------------------------------------------------------------

    def touch(self, names: Iterable[int]) -> None:
        """A look-up has hit these: they are worth keeping."""
        if 2 * self.blocks < self.limit:
            return
        self._touched.update(names)
        if len(self._touched) > self.limit // 8:
            self._touched_before, self._touched = self._touched, set()

    def _forget(self) -> None:
        at = self._forget_at
        self._forget_at = (at + 1) & self.shard_mask
        for tier, shards in enumerate(self.tiers):
            shard = shards[at]
            for name in list(islice(shard, -(-len(shard) // FORGET_SHARE))):
                mask = shard.pop(name)
                if name in self._touched or name in self._touched_before:
                    self._touched.discard(name)
                    self._touched_before.discard(name)
                    shard[name] = mask  # now the youngest
                else:
                    self._uncount(mask)
                    self.tier_blocks[tier] -= 1
                    self.forgotten_total += 1

    def _uncount(self, mask: int) -> None:
        while mask:
            slot = mask.bit_length() - 1
            mask ^= 1 << slot
            owner = self._owners[slot]
            assert owner is not None, "a bit without an owner"
            owner.blocks -= 1
