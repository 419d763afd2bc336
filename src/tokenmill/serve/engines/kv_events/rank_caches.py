"""The caches of one server's data-parallel ranks: which rank has what, and what they have together.

Exists because the ranks of a server tell their events apart, while whoever chooses a server wants to know
what is cached behind it. It must not know sockets, requests or how a rank is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvent

_Held = dict[CacheTier, set[BlockHash]]


class RankCaches:
    """``apply`` each rank's events. Memory: some 100 bytes a cached block and rank."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._held: list[_Held] = [{} for _ in range(ranks)]

    def apply(self, rank: int, events: list[KvEvent]) -> list[KvEvent]:
        """Follow what a rank says. Returns what it means for all of them together: a block is gone when the
        last one that had it has it no more."""
        words: list[KvEvent] = []
        held = self._held[rank]
        for event in events:
            if isinstance(event, BlocksStored):
                held.setdefault(event.tier, set()).update(event.hashes)
                words.append(event)
            elif isinstance(event, BlocksRemoved):
                held.get(event.tier, set()).difference_update(event.hashes)
                self._gone(event.hashes, event.tier, words)
            else:
                self._cleared(rank, words)
        return words if self.ranks > 1 else events

    def cached_blocks(self, rank: int, names: Sequence[int]) -> int:
        """Return how many of a prompt's first blocks a rank has, in whichever tier."""
        tiers = list(self._held[rank].values())
        for count, name in enumerate(names):
            if not any(name in tier for tier in tiers):
                return count
        return len(names)

    def _cleared(self, rank: int, words: list[KvEvent]) -> None:
        lost, self._held[rank] = self._held[rank], {}
        if not any(self._held):
            words.append(CacheCleared())
            return
        for tier, names in lost.items():
            self._gone(list(names), tier, words)

    def _gone(self, names: list[BlockHash], tier: CacheTier, words: list[KvEvent]) -> None:
        gone = [name for name in names if not any(name in held.get(tier, ()) for held in self._held)]
        if gone:
            words.append(BlocksRemoved(gone, tier))
