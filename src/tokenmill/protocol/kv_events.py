"""Worker -> router: which blocks are cached here. Numbered, so that a gap is seen."""

from __future__ import annotations

import msgspec

from tokenmill.protocol.ids import BlockHash


class BlocksStored(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Blocks entered the cache, in chain order after ``parent`` (None: the sequence's start)."""

    hashes: list[BlockHash]
    parent: BlockHash | None = None


class BlocksRemoved(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Blocks left the cache."""

    hashes: list[BlockHash]


class CacheCleared(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """All blocks left the cache."""


KvEvent = BlocksStored | BlocksRemoved | CacheCleared
