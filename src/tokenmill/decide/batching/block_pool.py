"""Who holds which KV block, and which blocks still hold something worth keeping.

A block is free, cached (named by a hash, held by nobody, evictable) or held (by one or more sequences; it may
be named too). It must not know sequences, steps or what memory the blocks stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from tokenmill.decide.batching.cached_run import CachedRun
from tokenmill.decide.batching.eviction import EvictionOrder
from tokenmill.decide.batching.free_runs import FreeRuns
from tokenmill.decide.batching.kv_event_log import KvEventLog
from tokenmill.protocol.kv_events import KvEvent


class BlockPool:
    """``total_blocks`` blocks of ``block_tokens`` tokens each.

    Named blocks are kept as runs (``cached_run``): what a sequence names at once, and what it alone held when
    it let go, is one run, until somebody takes a part of it. So each block table has a run whole and in one
    piece, or not at all; what is found, held, let go and evicted costs Python's time by the run, and only
    copying by the block.

    ``prefix_cache`` off: nothing is ever named, so freed blocks are simply free and no events arise.
    """

    def __init__(self, total_blocks: int, block_tokens: int, prefix_cache: bool = True) -> None:
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self._free = FreeRuns(total_blocks)
        self._nameless = 0  # held blocks that have no name
        self._named: dict[int, CachedRun] = {}  # by the first name
        self._at: dict[int, CachedRun] = {}  # by the first block
        self._evictable = EvictionOrder()
        self._events = KvEventLog(limit=max(1024, 4 * total_blocks))

    @property
    def free_blocks(self) -> int:
        """Blocks that ``allocate`` can hand out: free ones and cached ones that nobody holds."""
        return self._free.count + self._evictable.blocks

    @property
    def used_blocks(self) -> int:
        """Blocks that somebody holds."""
        return self.total_blocks - self._free.count - self._evictable.blocks

    @property
    def names(self) -> set[int]:
        """The names of all cached blocks."""
        return set(chain.from_iterable(run.names for run in self._named.values()))

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks ``tokens`` tokens need."""
        return -(-tokens // self.block_tokens)

    def match(self, hashes: list[int]) -> list[int]:
        """Return the cached blocks of the longest prefix of ``hashes``, not held by this call."""
        found: list[int] = []
        at, end, named = 0, len(hashes), self._named
        while at < end:
            run = named.get(hashes[at])
            if run is None:
                break
            common = run.named_alike(hashes, at)
            found += run.blocks if common == len(run.blocks) else run.blocks[:common]
            at += common  # who leaves a run may go on in another, which branches off there
        return found

    def evictable_among(self, blocks: list[int]) -> int:
        """Return how many of ``blocks``, as found by ``match``, count as free now, and would not once they
        are held."""
        count = at = 0
        while at < len(blocks):
            run = self._at[blocks[at]]
            common = run.placed_alike(blocks, at)
            if not run.holders:
                count += common
            at += common
        return count

    def hold(self, blocks: list[int]) -> None:
        """Hold cached blocks, as found by ``match``, once more."""
        self.part(blocks)
        for run in self._pieces(blocks, []):
            assert run is not None, "what is found has a name"
            if not run.holders:
                self._evictable.remove(run)
            run.holders += 1
            run.found = True

    def part(self, blocks: list[int]) -> None:
        """See that ``blocks``, the head of a block table, has each run whole or not at all, so that it can go
        another way than what follows."""
        at, runs = 0, self._at
        while at < len(blocks):
            run = runs.get(blocks[at])
            if run is None:
                at += 1
                continue
            common = run.placed_alike(blocks, at)
            if common < len(run.blocks):
                for each in (run.split(common), run):
                    self._named[each.names[0]] = runs[each.blocks[0]] = each
            at += common

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Return ``count`` blocks, each held once, evicting cached ones (``eviction`` says which) if need be.

        ``after``: a block that these should follow in memory if they can. Raises ValueError when
        ``count`` is above ``free_blocks``; then nothing has changed.
        """
        short = count - self._free.count
        if short > self._evictable.blocks:
            raise ValueError(f"{count} blocks asked for, {self.free_blocks} free")
        self._nameless += count
        if short <= 0:
            return self._free.take(count, after)
        return self._free.take(count - short, after) + self._evict(short)

    def free(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, given in its order: those named stay cached until evicted, the
        tail before the head, since a tail is of no use without its head."""
        nameless: list[int] = []
        let_go: list[CachedRun] = []
        joins = False  # whether the next run follows the last of ``let_go`` in the table
        for run in self._pieces(blocks, nameless):
            if run is None:
                joins = False
                continue
            run.holders -= 1
            assert run.holders >= 0, "a block is freed more often than it was held"
            if run.holders:
                joins = False
            elif joins and let_go[-1].absorbs(run):
                del self._named[run.names[0]], self._at[run.blocks[0]]
            else:
                let_go.append(run)
                joins = True
        self._nameless -= len(nameless)
        assert self._nameless >= 0, "a block is freed more often than it was held"
        self._free.add_all(nameless)
        for run in reversed(let_go):
            self._evictable.add(run)

    def _pieces(self, table: Sequence[int], nameless: list[int]) -> Iterator[CachedRun | None]:
        """Yield the runs of a block table in order, None for each block without a name."""
        at, runs = 0, self._at
        while at < len(table):
            run = runs.get(table[at])
            if run is None:
                nameless.append(table[at])
                at += 1
            else:
                at += len(run.blocks)
            yield run

    def commit(self, block_hash: int, block: int, parent: int | None) -> None:
        """Name a held, fully computed ``block`` so that others can find it.

        ``parent``: hash of the block before it, None for a sequence's first. When another block has the
        name already, that one stays the one to be found and this one remains private.
        """
        self.commit_run([block_hash], [block], parent)

    def commit_run(self, hashes: list[int], blocks: list[int], parent: int | None) -> bool:
        """``commit`` for blocks in a row, the first of which has the ``parent``. The lists are kept.

        False: another block has one of the names. Then nothing has been done, and ``commit_beside`` is to be
        called, now and for all that this sequence still computes: its block before is not the one that is
        found, so that the run of that one may have the next names as well.
        """
        if not self.prefix_cache or not hashes:
            return True
        if not self._named.keys().isdisjoint(hashes):
            return False
        self._name(hashes, blocks, parent)
        return True

    def commit_beside(self, hashes: list[int], blocks: Sequence[int], first: int, full: int) -> None:
        """``commit`` for the blocks from place ``first`` to before ``full`` of a sequence of whose blocks
        another computed some too. ``hashes``, ``blocks``: of the whole sequence."""
        at = 0
        if first and blocks[first - 1] in self._at:
            at = first  # its last block is the one that is found: no run lies on both sides
        unknown = at
        while at < full:
            run = self._named.get(hashes[at])
            if run is None:
                at += 1
                continue
            self._name_between(hashes, blocks, max(first, unknown), at)
            at = unknown = at + run.named_alike(hashes, at)
        self._name_between(hashes, blocks, max(first, unknown), full)

    def _name_between(self, hashes: list[int], blocks: Sequence[int], first: int, end: int) -> None:
        if first < end:
            self._name(hashes[first:end], list(blocks[first:end]), hashes[first - 1] if first else None)

    def _name(self, names: list[int], blocks: list[int], parent: int | None) -> None:
        assert blocks[0] not in self._at, "a block has a name already"
        self._nameless -= len(blocks)
        self._events.stored_run(names, parent)
        self._named[names[0]] = self._at[blocks[0]] = CachedRun(names, blocks, parent)

    def drain_events(self) -> list[KvEvent]:
        """Return what entered and left the cache since the last call.

        If nobody asked for so long that the log overflowed, returns ``CacheCleared`` and then all that
        is cached now: a reader that applies the events in order is right either way.
        """
        return self._events.drain(self._parents)

    def _parents(self) -> dict[int, int | None]:
        parents: dict[int, int | None] = {}
        for run in self._named.values():
            parents.update(zip(run.names, (run.parent, *run.names[:-1]), strict=True))
        return parents

    def _evict(self, count: int) -> list[int]:
        """Return ``count`` blocks that were cached, neighbours beside each other."""
        evicted: list[int] = []
        for run, gone in self._evictable.pop_many(count):
            if gone == len(run.blocks):
                del self._named[run.names[0]], self._at[run.blocks[0]]
            names, blocks = run.cut(gone)
            evicted += blocks
            self._events.removed_all(names)
        evicted.sort()
        return evicted

    def validate(self, held: Iterable[Iterable[int]]) -> None:
        """Check every invariant. ``held``: the block table of every holder. Raises AssertionError."""
        counts: Counter[int] = Counter()
        for blocks in held:
            table = list(blocks)
            counts.update(table)
            self._validate_table(table)
        runs = list(self._named.values())
        named = [block for run in runs for block in run.blocks]
        names = [name for run in runs for name in run.names]
        assert len(set(named)) == len(named) == len(names) == len(set(names)), "names of blocks"
        for run in runs:
            assert self._at[run.blocks[0]] is self._named[run.names[0]] is run, "a run's places"
            assert {counts[block] for block in run.blocks} == {run.holders}, "holders of a run"
        assert len(self._at) == len(runs), "runs by their blocks"
        evictable = [block for run in self._evictable for block in run.blocks]
        assert len(evictable) == self._evictable.blocks, "count of evictable blocks"
        assert {b for run in runs if not run.holders for b in run.blocks} == set(evictable), (
            "evictable blocks"
        )
        assert len(set(counts).difference(named)) == self._nameless, "held blocks without a name: holders"
        self._free.validate()
        free = {block for start, end in self._free.runs() for block in range(start, end)}
        assert not free & (set(counts) | set(named)), "a free block is held or has a name"
        assert len(free) + len(set(counts).union(named)) == self.total_blocks, "a block is lost"
        assert self.prefix_cache or not named, "names although the prefix cache is off"

    def _validate_table(self, table: list[int]) -> None:
        at = 0
        for run in self._pieces(table, []):
            length = 1 if run is None else len(run.blocks)
            assert run is None or table[at : at + length] == run.blocks, "a run is not in one piece"
            at += length
