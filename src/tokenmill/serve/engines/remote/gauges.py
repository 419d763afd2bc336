"""What one reading of a server's own metrics says, in the same words for every engine."""

from __future__ import annotations

import msgspec


class EngineGauges(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and tokens; what a server does not tell stays 0. ``kv_used``: share of the cache, 0 to 1."""

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
