"""What a worker has cached, so that a router that comes late can be told all of it at once.

Exists because an engine says only what changes. It must not know streams, engines or who reads.

Cost, when nobody reads: 0.3 us a block stored, 0.1 us a block removed, and 130 bytes a cached block (its
hash is shared with the engine's own table where that runs in this process).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    CacheTier,
    KvEvent,
    KvEvents,
)

FRAME_HASHES: Final = 32_768
"""Most hashes in one item of a snapshot: about 300 kB, far below what one frame of the fabric may hold."""

MAX_WAITING_HASHES: Final = 131_072
"""Most hashes that are kept for one reader that does not keep up: about 1.2 MB on the wire."""

MAX_WAITING_EVENTS: Final = 2048
"""Most events that are kept for one reader that does not keep up."""


class KvJournal:
    """The cached blocks of one worker by tier, each with its parent. Bounded by the engine's cache."""

    def __init__(self) -> None:
        self._cached: dict[CacheTier, dict[BlockHash, BlockHash | None]] = {}

    @property
    def blocks(self) -> int:
        """Cached blocks; one that lies in two tiers counts twice."""
        return sum(map(len, self._cached.values()))

    def apply(self, events: Iterable[KvEvent]) -> None:
        """Follow what an engine said of its cache."""
        for event in events:
            if isinstance(event, BlocksStored):
                hashes = event.hashes
                cached = self._cached.setdefault(event.tier, {})
                cached.update(zip(hashes, chain((event.parent,), hashes), strict=False))
            elif isinstance(event, BlocksRemoved):
                cached = self._cached.get(event.tier, {})
                for block in event.hashes:
                    cached.pop(block, None)
            else:
                self._cached.clear()

    def snapshot(self) -> Iterator[list[KvEvent]]:
        """Return the events that rebuild the cache from whatever a reader believes, at most ``FRAME_HASHES``
        hashes in each list; parents come before children. The journal must not change meanwhile."""
        part: list[KvEvent] = [CacheCleared()]
        room = FRAME_HASHES
        for tier, cached in self._cached.items():
            for hashes, parent in _chains(cached):
                begin, above = 0, parent
                while begin < len(hashes):
                    piece = hashes[begin : begin + room]
                    part.append(BlocksStored(piece, above, tier))
                    begin, above, room = begin + len(piece), piece[-1], room - len(piece)
                    if not room:
                        yield part
                        part, room = [], FRAME_HASHES
        if part:
            yield part


def merge_events(older: KvEvents, newer: KvEvents) -> KvEvents | None:
    """Join two items that wait for one slow reader. None where they do not follow each other.

    Bound: beyond ``MAX_WAITING_HASHES`` or ``MAX_WAITING_EVENTS`` what waits is dropped for an empty item
    whose number lies ahead: the reader sees the gap when it gets there, and subscribes anew for a snapshot.
    """
    after = newer.first + len(newer.events)
    if older.first + len(older.events) != newer.first:
        return None
    if len(older.events) + len(newer.events) > MAX_WAITING_EVENTS:
        return KvEvents(after, [])
    events = [*older.events, *newer.events]
    if sum(len(event.hashes) for event in events if not isinstance(event, CacheCleared)) > MAX_WAITING_HASHES:
        return KvEvents(after, [])
    return KvEvents(older.first, events)


def _chains(
    cached: dict[BlockHash, BlockHash | None],
) -> Iterator[tuple[list[BlockHash], BlockHash | None]]:
    """Cut the tree of blocks into as few chains as it has leaves, those nearer the root first."""
    parents = set(cached.values())
    told: set[BlockHash] = set()
    for leaf in cached:
        if leaf in parents:
            continue
        path: list[BlockHash] = []
        at: BlockHash | None = leaf
        while at is not None and at in cached and at not in told:
            path.append(at)
            told.add(at)
            at = cached[at]
        path.reverse()
        yield path, at
