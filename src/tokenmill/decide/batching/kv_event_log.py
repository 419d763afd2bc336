"""What entered and left a prefix cache, for routers that index it.

Bounded: a log nobody drains turns into one snapshot. It must not know blocks or who reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent


class KvEventLog:
    """Events since the last ``drain``; above ``limit`` hashes they are dropped for a snapshot."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: list[KvEvent] = []
        self._hashes = 0
        self._overflowed = False

    def stored(self, block_hash: int, parent: int | None) -> None:
        """Note that a block entered the cache; a chain becomes one event."""
        self.stored_run([block_hash], parent)

    def stored_run(self, hashes: Sequence[int], parent: int | None) -> None:
        """Note that blocks entered the cache, each the parent of the next."""
        if not self._has_room(len(hashes)):
            return
        names = cast("Sequence[BlockHash]", hashes)
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksStored) and last.hashes[-1] == parent:
            last.hashes.extend(names)
        else:
            self._events.append(BlocksStored(list(names), None if parent is None else BlockHash(parent)))

    def removed(self, block_hash: int) -> None:
        """Note that a block left the cache; neighbours become one event."""
        self.removed_all([block_hash])

    def removed_all(self, hashes: Sequence[int]) -> None:
        """Note that blocks left the cache."""
        if not self._has_room(len(hashes)):
            return
        names = cast("Sequence[BlockHash]", hashes)
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksRemoved):
            last.hashes.extend(names)
        else:
            self._events.append(BlocksRemoved(list(names)))

    def drain(self, cached: Callable[[], dict[int, int | None]]) -> list[KvEvent]:
        """Return and forget the events. ``cached``: gives all cached hashes with their parents; called
        only after an overflow."""
        events = _snapshot(cached()) if self._overflowed else self._events
        self._events = []
        self._hashes = 0
        self._overflowed = False
        return events

    def _has_room(self, hashes: int) -> bool:
        self._hashes += hashes
        if self._hashes > self._limit:
            self._overflowed = True
            self._events.clear()
        return not self._overflowed


def _stored(hashes: list[int], parent: int | None) -> BlocksStored:
    return BlocksStored([BlockHash(h) for h in hashes], None if parent is None else BlockHash(parent))


def _snapshot(cached: dict[int, int | None]) -> list[KvEvent]:
    """Return events that rebuild ``cached`` (hash -> parent) from nothing, parents before children."""
    events: list[KvEvent] = [CacheCleared()]
    told: set[int] = set()
    for leaf in cached:
        chain: list[int] = []
        at: int | None = leaf
        while at is not None and at in cached and at not in told:
            chain.append(at)
            told.add(at)
            at = cached[at]
        last = events[-1]
        if chain and isinstance(last, BlocksStored) and last.hashes[-1] == at:
            last.hashes.extend(BlockHash(block_hash) for block_hash in reversed(chain))
        elif chain:
            events.append(_stored(chain[::-1], at))
    return events
