"""Who holds which KV block, and which blocks still hold something worth keeping.

A block is free, cached (named by a hash, held by nobody, evictable) or held (by one or more sequences; it may
be named too). It must not know sequences, steps or what memory the blocks stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tokenmill.decide.batching.eviction import EvictionOrder
from tokenmill.decide.batching.free_runs import FreeRuns
from tokenmill.decide.batching.kv_event_log import KvEventLog
from tokenmill.protocol.kv_events import KvEvent


class BlockPool:
    """``total_blocks`` blocks of ``block_tokens`` tokens each. All operations are O(1) per block.

    ``prefix_cache`` off: nothing is ever named, so freed blocks are simply free and no events arise.
    """

    def __init__(self, total_blocks: int, block_tokens: int, prefix_cache: bool = True) -> None:
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self._free = FreeRuns(total_blocks)
        self._held: set[int] = set()
        self._shared: dict[int, int] = {}  # how many hold a block beside the first
        self._hash_of: dict[int, int] = {}
        self._parent_of: dict[int, int | None] = {}
        self._block_of: dict[int, int] = {}
        self._evictable = EvictionOrder()
        self._events = KvEventLog(limit=max(1024, 4 * total_blocks))

    @property
    def free_blocks(self) -> int:
        """Blocks that ``allocate`` can hand out: free ones and cached ones that nobody holds."""
        return self._free.count + len(self._evictable)

    @property
    def used_blocks(self) -> int:
        """Blocks that somebody holds."""
        return self.total_blocks - self.free_blocks

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks ``tokens`` tokens need."""
        return -(-tokens // self.block_tokens)

    def match(self, hashes: Iterable[int]) -> list[int]:
        """Return the cached blocks of the longest prefix of ``hashes``, not held by this call."""
        found: list[int] = []
        get = self._block_of.get
        for block_hash in hashes:
            block = get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def evictable_among(self, blocks: Collection[int]) -> int:
        """Return how many of ``blocks`` count as free now, and would not once they are held."""
        return self._evictable.count_of(blocks) if blocks else 0

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold cached blocks, as found by ``match``, once more."""
        shared, found = self._shared, self._evictable.found
        for block in blocks:
            if found(block):
                self._held.add(block)
            else:
                shared[block] = shared.get(block, 0) + 1

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Return ``count`` blocks, each held once, evicting cached ones (``eviction`` says which) if need be.

        ``after``: a block that these should follow in memory if they can. Raises ValueError when
        ``count`` is above ``free_blocks``; then nothing has changed.
        """
        if count > self.free_blocks:
            raise ValueError(f"{count} blocks asked for, {self.free_blocks} free")
        if count > len(self._free):
            self._evict(count - len(self._free))
        blocks = self._free.take(count, after)
        self._held.update(blocks)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, given in its order: those named stay cached until evicted, the
        tail before the head, since a tail is of no use without its head."""
        shared, hash_of = self._shared, self._hash_of
        left = blocks[::-1]
        if shared and not shared.keys().isdisjoint(blocks):
            left = [block for block in left if not self._is_still_held(block)]
        assert self._held.issuperset(left), "a block is freed more often than it was held"
        self._held.difference_update(left)
        nameless = set(left).difference(hash_of)
        if nameless:
            self._free.add_all(nameless)
            left = [block for block in left if block not in nameless]
        self._evictable.add_all(left)

    def _is_still_held(self, block: int) -> bool:
        """Take one holder off; whether there is another."""
        others = self._shared.get(block)
        if others is None:
            return False
        if others > 1:
            self._shared[block] = others - 1
        else:
            del self._shared[block]
        return True

    def commit(self, block_hash: int, block: int, parent: int | None) -> None:
        """Name a held, fully computed ``block`` so that others can find it.

        ``parent``: hash of the block before it, None for a sequence's first. When another block has the
        name already, that one stays the one to be found and this one remains private.
        """
        self.commit_run([block_hash], [block], parent)

    def commit_run(self, hashes: Sequence[int], blocks: Sequence[int], parent: int | None) -> None:
        """``commit`` for blocks in a row, the first of which has the ``parent``."""
        if not self.prefix_cache:
            return
        if not self._block_of.keys().isdisjoint(hashes):
            for block_hash, block in zip(hashes, blocks, strict=True):
                if block_hash not in self._block_of:
                    self._name((block_hash,), (block,), parent)
                parent = block_hash
        elif hashes:
            self._name(hashes, blocks, parent)

    def _name(self, hashes: Sequence[int], blocks: Sequence[int], parent: int | None) -> None:
        assert self._hash_of.keys().isdisjoint(blocks), "a block has a name already"
        self._events.stored_run(hashes, parent)
        self._hash_of.update(zip(blocks, hashes, strict=True))
        self._parent_of.update(zip(blocks, (parent, *hashes[:-1]), strict=True))
        self._block_of.update(zip(hashes, blocks, strict=True))

    def drain_events(self) -> list[KvEvent]:
        """Return what entered and left the cache since the last call.

        If nobody asked for so long that the log overflowed, returns ``CacheCleared`` and then all that
        is cached now: a reader that applies the events in order is right either way.
        """
        return self._events.drain(lambda: {h: self._parent_of[b] for h, b in self._block_of.items()})

    def _evict(self, count: int) -> None:
        blocks, block_of = self._evictable.pop_many(count), self._block_of
        removed = [*map(self._hash_of.pop, blocks)]
        for block_hash in removed:
            del block_of[block_hash]
        self._free.add_all(blocks)
        self._events.removed_all(removed)

    def validate(self, held: Iterable[Iterable[int]]) -> None:
        """Check every invariant. ``held``: the block table of every holder. Raises AssertionError."""
        counts = Counter(block for table in held for block in table)
        shared = {block: count - 1 for block, count in counts.items() if count > 1}
        assert (set(counts), shared) == (self._held, self._shared), "counts of holders against block tables"
        self._free.validate()
        free = {block for start, end in self._free.runs() for block in range(start, end)}
        evictable = set(self._evictable)
        assert not free & evictable, "blocks both free and cached"
        assert not (free | evictable) & set(counts), "blocks both free and held"
        assert len(free) + len(evictable) + len(counts) == self.total_blocks, "a block is lost"
        named = self._hash_of
        assert {name: block for block, name in named.items()} == self._block_of, "names of blocks"
        assert evictable <= set(named), "a cached block has no name"
        assert not free & set(named), "a free block has a name"
        assert self.prefix_cache or not named, "names although the prefix cache is off"
