"""What a router counts.

Exists as plain numbers for metrics and health. It must not know how they are told.
"""

from __future__ import annotations

import msgspec


class RouterStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for metrics and health. Those ending in ``_total`` only grow.

    ``index_blocks``: blocks known to be cached somewhere, each tier's counted apart, of at most
    ``index_limit``; ``worker_blocks``: by worker. ``predicted``: names held for prompts that no event has
    confirmed yet. ``routed_cached_tokens_total``: of ``routed_tokens_total``, those predicted to be cached.
    """

    workers: int = 0
    index_blocks: int = 0
    index_limit: int = 0
    worker_blocks: dict[str, int] = {}
    predicted: int = 0
    events_total: int = 0
    gaps_total: int = 0
    forgotten_blocks_total: int = 0
    routed_total: int = 0
    routed_remote_total: int = 0
    routed_tokens_total: int = 0
    routed_cached_tokens_total: int = 0
