"""Worker -> router: which blocks are cached here. Numbered, so that a gap is seen."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from tokenmill.protocol.ids import BlockHash


class CacheTier(IntEnum):
    """Where a cached block lies; the smaller is the nearer."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class BlocksStored(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Blocks entered a tier of the cache, in order after ``parent`` (None: the sequence's start)."""

    hashes: list[BlockHash]
    parent: BlockHash | None = None
    tier: CacheTier = CacheTier.DEVICE


class BlocksRemoved(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Blocks left a tier of the cache."""

    hashes: list[BlockHash]
    tier: CacheTier = CacheTier.DEVICE


class CacheCleared(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """All blocks left all tiers of the cache."""


KvEvent = BlocksStored | BlocksRemoved | CacheCleared


class KvEvents(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Events of one worker, in order; ``first`` is the number of the first of them.

    Numbers start at 0 with each subscription and grow by one an event. The first events are a snapshot:
    ``CacheCleared`` and then all that is cached. A reader that expects n and sees another ``first`` has
    missed events (a worker drops what waits for a reader too far behind): it forgets what it knew of the
    worker and subscribes anew.
    """

    first: int
    events: list[KvEvent]
