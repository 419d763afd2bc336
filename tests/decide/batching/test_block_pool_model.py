"""Runs of blocks do what a pool would that keeps books on each block."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.batching.block_pool import BlockPool
from tokenmill.decide.batching.eviction import FOUND_AGE_DIVISOR
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored


class Cached:
    """One named block. ``age``: of all that were let go, the how manieth it was."""

    def __init__(self) -> None:
        self.holders = 1
        self.found = False
        self.age = 0


class Model:
    """Names only: no two sequences can tell blocks of one name apart."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.nameless = 0
        self.cached: dict[int, Cached] = {}
        self.let_go = 0

    @property
    def free(self) -> int:
        return self.total - self.nameless - sum(1 for each in self.cached.values() if each.holders)

    def start(self, names: list[int], most: int) -> int | None:
        """Hold what is found of ``names``; return how many, or None where there is no room."""
        found = 0
        while found < most and names[found] in self.cached:
            found += 1
        heads = [self.cached[name] for name in names[:found]]
        if len(names) + 1 - found > self.free - sum(1 for each in heads if not each.holders):
            return None
        for each in heads:
            each.holders += 1
            each.found = True
        return found

    def allocate(self, count: int) -> list[int]:
        """Return the names that are evicted."""
        gone: list[int] = []
        self.nameless += count
        while self.nameless + len(self.cached) > self.total:
            evictable = [(each.age, name) for name, each in self.cached.items() if not each.holders]
            new = min((age for age, name in evictable if not self.cached[name].found), default=None)
            old = min((age for age, name in evictable if self.cached[name].found), default=None)
            if old is not None and (
                new is None or self.let_go - old > FOUND_AGE_DIVISOR * (self.let_go - new)
            ):
                age: int | None = old
            else:
                age = new
            name = next(name for each, name in evictable if each == age)
            del self.cached[name]
            gone.append(name)
        return gone

    def commit(self, name: int) -> bool:
        """Name a held block; False: it stays private."""
        if name in self.cached:
            return False
        self.nameless -= 1
        self.cached[name] = Cached()
        return True

    def free_all(self, own: list[int | None]) -> None:
        """Let go of a table: names, None for blocks without."""
        for name in reversed(own):
            if name is None:
                self.nameless -= 1
                continue
            each = self.cached[name]
            each.holders -= 1
            if not each.holders:
                self.let_go += 1
                each.age = self.let_go


class Sequence:
    """``own``: what the model calls its blocks. ``beside``: others computed some of them too."""

    def __init__(self, names: list[int], blocks: list[int], found: int) -> None:
        self.names = names
        self.blocks = blocks
        self.named = found
        self.own: list[int | None] = [*names[:found], *[None] * (len(names) + 1 - found)]
        self.beside = False


class Pair:
    """A pool and a model that are told the same."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        total = self.random.choice([8, 20, 60])
        self.pool, self.model = BlockPool(total, 4), Model(total)
        self.kinds, self.deep = self.random.choice([1, 2, 3]), self.random.choice([3, 8, 25])
        self.sequences: list[Sequence] = []

    def names(self) -> list[int]:
        """Return a chain whose names tell all before them, often begun like another."""
        names: list[int] = []
        if self.sequences and self.random.random() < 0.4:
            names += self.random.choice(self.sequences).names
        for _ in range(self.random.randint(1, self.deep)):
            names.append(hash((names[-1] if names else 0, self.random.randint(1, self.kinds))))
        return names

    def start(self) -> None:
        names = self.names()
        cached = self.pool.match(names[: len(names) - self.random.randint(0, 1)])
        found = self.model.start(names, len(cached))
        room = self.pool.free_blocks - self.pool.evictable_among(cached)
        assert (found is None) is (len(names) + 1 - len(cached) > room)
        if found is None:
            return
        assert found == len(cached)
        self.pool.hold(cached)
        blocks = cached + self.pool.allocate(len(names) + 1 - found)
        assert self.told(BlocksRemoved) == self.model.allocate(len(names) + 1 - found)
        self.sequences.append(Sequence(names, blocks, found))

    def commit(self) -> None:
        each = self.random.choice(self.sequences)
        first, full = each.named, min(len(each.names), each.named + self.random.choice([1, 2, 5, 30]))
        names, blocks, parent = each.names, each.blocks, each.names[first - 1] if first else None
        each.beside = each.beside or not self.pool.commit_run(names[first:full], blocks[first:full], parent)
        if each.beside:
            self.pool.commit_beside(names, blocks, first, full)
        kept = [place for place in range(first, full) if self.model.commit(names[place])]
        assert self.told(BlocksStored) == [names[place] for place in kept]
        for place in kept:
            each.own[place] = names[place]
        each.named = full

    def end(self) -> None:
        each = self.sequences.pop(self.random.randrange(len(self.sequences)))
        self.pool.free(each.blocks)
        self.model.free_all(each.own)

    def told(self, kind: type[BlocksRemoved | BlocksStored]) -> list[int]:
        events = self.pool.drain_events()
        assert all(isinstance(event, kind) for event in events)
        return [name for event in events for name in event.hashes]

    def check(self) -> None:
        self.pool.validate([each.blocks for each in self.sequences])
        assert self.pool.names == set(self.model.cached)
        assert self.pool.free_blocks == self.model.free


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_runs_do_what_single_blocks_would(seed: int) -> None:
    pair = Pair(seed)
    for _ in range(120):
        act = pair.random.random()
        if act < 0.4 or not pair.sequences:
            pair.start()
        elif act < 0.75:
            pair.commit()
        else:
            pair.end()
        pair.check()
