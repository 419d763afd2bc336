"""Who holds which KV block, and which blocks still hold something worth keeping.

A block is free, cached (named by a hash, held by nobody, evictable) or held (by one or more sequences; it may
be named too). It must not know sequences, steps or what memory the blocks stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

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
        self._holders = [0] * total_blocks
        self._hash_of: list[int | None] = [None] * total_blocks
        self._parent_of: list[int | None] = [None] * total_blocks
        self._block_of: dict[int, int] = {}
        self._evictable = EvictionOrder(total_blocks)
        self._events = KvEventLog(limit=max(1024, 4 * total_blocks))

    @property
    def free_blocks(self) -> int:
        """Blocks that ``allocate`` can hand out: free ones and cached ones that nobody holds."""
        return len(self._free) + len(self._evictable)

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

    def evictable_among(self, blocks: Iterable[int]) -> int:
        """Return how many of ``blocks`` count as free now, and would not once they are held."""
        holders = self._holders
        return sum(1 for block in blocks if not holders[block])

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold cached blocks, as found by ``match``, once more."""
        holders, found = self._holders, self._evictable.found
        for block in blocks:
            found(block)
            holders[block] += 1

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Return ``count`` blocks, each held once, evicting cached ones (``eviction`` says which) if need be.

        ``after``: a block that these should follow in memory if they can. Raises ValueError when
        ``count`` is above ``free_blocks``; then nothing has changed.
        """
        if count > self.free_blocks:
            raise ValueError(f"{count} blocks asked for, {self.free_blocks} free")
        for _ in range(count - len(self._free)):
            self._evict_one()
        blocks = self._free.take(count, after)
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, given in its order: those named stay cached until evicted, the
        tail before the head, since a tail is of no use without its head."""
        for block in reversed(blocks):
            left = self._holders[block] - 1
            assert left >= 0, f"block {block} is freed more often than it was held"
            self._holders[block] = left
            if left:
                continue
            if self._hash_of[block] is None:
                self._free.add(block)
            else:
                self._evictable.add(block)

    def commit(self, block_hash: int, block: int, parent: int | None) -> None:
        """Name a held, fully computed ``block`` so that others can find it.

        ``parent``: hash of the block before it, None for a sequence's first. When another block has the
        name already, that one stays the one to be found and this one remains private.
        """
        if not self.prefix_cache or block_hash in self._block_of:
            return
        assert self._holders[block], f"block {block} is named but not held"
        assert self._hash_of[block] is None, f"block {block} has a name already"
        self._block_of[block_hash] = block
        self._hash_of[block] = block_hash
        self._parent_of[block] = parent
        self._events.stored(block_hash, parent)

    def drain_events(self) -> list[KvEvent]:
        """Return what entered and left the cache since the last call.

        If nobody asked for so long that the log overflowed, returns ``CacheCleared`` and then all that
        is cached now: a reader that applies the events in order is right either way.
        """
        return self._events.drain(lambda: {h: self._parent_of[b] for h, b in self._block_of.items()})

    def _evict_one(self) -> None:
        block = self._evictable.pop()
        block_hash = self._hash_of[block]
        assert block_hash is not None
        del self._block_of[block_hash]
        self._hash_of[block] = None
        self._free.add(block)
        self._events.removed(block_hash)

    def validate(self, held: Iterable[Iterable[int]]) -> None:
        """Check every invariant. ``held``: the block table of every holder. Raises AssertionError."""
        counts = Counter(block for table in held for block in table)
        assert counts == Counter(dict(enumerate(self._holders))), "counts of holders against block tables"
        self._free.validate()
        free = {block for start, end in self._free.runs() for block in range(start, end)}
        evictable = set(self._evictable)
        assert not free & evictable, "blocks both free and cached"
        assert not (free | evictable) & set(counts), "blocks both free and held"
        assert len(free) + len(evictable) + len(counts) == self.total_blocks, "a block is lost"
        named = {block: name for block, name in enumerate(self._hash_of) if name is not None}
        assert {name: block for block, name in named.items()} == self._block_of, "names of blocks"
        assert evictable <= set(named), "a cached block has no name"
        assert not free & set(named), "a free block has a name"
        assert self.prefix_cache or not named, "names although the prefix cache is off"
