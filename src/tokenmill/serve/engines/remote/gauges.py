"""What one reading of a server's own metrics says, in the same words for every engine."""

from __future__ import annotations

import msgspec


class EngineGauges(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and tokens; what a server does not tell stays 0. ``kv_used``: share of the cache, 0 to 1.

    ``prompt_tokens``: cached ones (``prefix_hit_tokens``) and those whose KV came from another server
    (``fetched_tokens``) among them. ``steps``: so far, over all ranks.
    """

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    kv_blocks: int = 0
    block_tokens: int = 0
    ranks: int = 1
    steps: int = 0
    fetched_tokens: int = 0
